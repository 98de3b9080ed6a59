"""Every guarantee, computed again from `events.jsonl` alone by somebody else: Opacus' accountant, and PLD below it."""

from fractions import Fraction

import pytest
from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from fedlearn.run.checkpoint import RunFolder
from fedlearn.simulation.run import simulate

SETTINGS = {
    "record-distributed": (),
    "sampled records": ("privacy.sampling_probability=1/4",),
    "record-local": ("privacy.mode=record-local", "privacy.sampling_probability=1/3", "training.local_steps=2"),
    "client-distributed": ("privacy.mode=client-distributed",),
    "client-central": ("privacy.mode=client-central",),
    "a smaller epsilon": ("privacy.target_epsilon=1",),
}
COMMON = (
    "run.rounds=3",
    "secure_aggregation.scale_bits=16",
    "training.local_steps=2",
    "training.batch_size=32",
    "secure_aggregation.masking=false",
)


@pytest.mark.lengthy
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_guarantee_is_what_opacus_makes_of_the_events(load_digits, tmp_path, setting):
    result = simulate(load_digits(*COMMON, *SETTINGS[setting]), output=tmp_path / "run")
    events = [line["event"] for line in RunFolder(result.run_dir).lines("events.jsonl")]
    assert len(events) == 3
    rdp = sum(
        compute_rdp(
            q=float(Fraction(event["sampling_probability"])),
            noise_multiplier=float(event["noise_multiplier"]),
            steps=event["count"],
            orders=DEFAULT_RDP_ORDERS,
        )
        for event in events
    )
    (guarantee, *_) = result.guarantees
    epsilon, _ = get_privacy_spent(orders=DEFAULT_RDP_ORDERS, rdp=rdp, delta=guarantee.delta)
    # eta takes a little of delta where records are sampled, and Opacus bounds fractional orders in another way.
    assert guarantee.epsilon == pytest.approx(epsilon, rel=5e-3)
    assert guarantee.epsilon_estimate <= guarantee.epsilon
