"""Whole runs in process: what a researcher sees, and what the ledger and the events say of it."""

import json
from collections import Counter

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from safetensors.numpy import load_file

from fedlearn import simulate
from fedlearn.errors import RunFailedError
from fedlearn.ledger import Ledger
from fedlearn.run.checkpoint import RunFolder

SHORT = ("run.rounds=3", "run.spare_rounds=1")


def run(load_digits, tmp_path, *overrides, name="run"):
    return simulate(load_digits(*SHORT, *overrides), output=tmp_path / name)


def weights_of(result):
    tensors = load_file(result.run_dir / "model.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_run_folder_has_everything_it_promises(load_digits, tmp_path):
    folder = run(load_digits, tmp_path).run_dir
    names = {path.name for path in folder.iterdir()}
    promised = {"config.toml", "metrics.jsonl", "events.jsonl", "model.safetensors", "summary.json", "report.html"}
    assert promised | {"ledger.db", "checkpoint.safetensors"} <= names
    assert not [name for name in names if name.endswith(".new")]


def test_epsilon_of_the_result_is_dp_accountings_on_the_events_file(load_digits, tmp_path):
    result = run(load_digits, tmp_path)
    events = [line["event"] for line in RunFolder(result.run_dir).lines("events.jsonl")]
    accountant = RdpAccountant()
    for event in events:
        accountant.compose(SelfComposedDpEvent(GaussianDpEvent(float(event["noise_multiplier"])), event["count"]))
    assert result.guarantees[0].epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)


def test_the_ledger_holds_one_release_a_client_and_round(load_digits, tmp_path):
    result = run(load_digits, tmp_path)
    ledger = Ledger(result.run_dir / "ledger.db")
    assert Counter(booking.dataset_id for booking in ledger.events()) == {f"client-{k}": 3 for k in range(10)}
    assert all(booking.released for booking in ledger.events())
    ledger.close()


def test_none_is_not_private_everywhere_it_speaks(load_digits, tmp_path):
    result = run(load_digits, tmp_path, "privacy.mode=none")
    assert not result.private
    assert result.guarantees == ()
    assert summary_of(result.run_dir)["private"] is False
    assert "NOT PRIVATE" in (result.run_dir / "report.html").read_text()


def test_the_same_seed_gives_the_same_model_without_noise_and_another_with_it(load_digits, tmp_path):
    plain = [weights_of(run(load_digits, tmp_path, "privacy.mode=none", name=f"n{k}")) for k in range(2)]
    noised = [weights_of(run(load_digits, tmp_path, name=f"p{k}")) for k in range(2)]
    np.testing.assert_array_equal(*plain)
    assert np.mean(noised[0] == noised[1]) < 0.1


def test_r06_two_of_ten_may_drop_out_at_any_stage_and_the_guarantee_stays(load_digits, tmp_path):
    result = run(load_digits, tmp_path, "runtime.dropout=0.2")
    whole = run(load_digits, tmp_path, name="whole")
    assert {line["survivors"] for line in RunFolder(result.run_dir).lines("metrics.jsonl")} <= {8, 9, 10}
    assert {line["asked"] for line in RunFolder(result.run_dir).lines("metrics.jsonl")} == {10}
    assert result.guarantees[0].epsilon == whole.guarantees[0].epsilon


def test_r06_with_six_of_ten_gone_the_run_ends_in_a_sentence_and_what_was_sent_is_booked(load_digits, tmp_path):
    with pytest.raises(RunFailedError, match="expected at least"):
        run(load_digits, tmp_path, "runtime.dropout=0.6")
    folder = RunFolder(tmp_path / "run")
    events = folder.lines("events.jsonl")
    assert all(line["aborted"] for line in events)
    assert folder.lines("metrics.jsonl") == []
    ledger = Ledger(folder.file("ledger.db"))
    assert len(ledger.events("client-0")) <= len(events)
    ledger.close()


def test_r15_an_empty_client_is_valid_in_every_mode(load_digits, tmp_path):
    # 2,000 clients for 1,437 records: most cohorts of ten hold empty clients.
    common = (
        "data.population_size=2000",
        "secure_aggregation.scale_bits=14",
        "privacy.max_participations=4",
        "privacy.target_epsilon=8",
        "privacy.sampling_probability=1/3",
        "secure_aggregation.masking=false",
    )
    for mode in ("record-local", "client-distributed", "client-central", "none"):
        result = run(load_digits, tmp_path, *common, f"privacy.mode={mode}", name=mode)
        assert result.rounds == 3
    assert run(load_digits, tmp_path, *common, name="distributed").rounds == 3


def test_cohorts_rotate_so_that_nobody_takes_part_more_often_than_needed(load_digits, tmp_path):
    result = run(
        load_digits,
        tmp_path,
        "run.rounds=5",
        "data.population_size=25",
        "privacy.max_participations=3",
    )
    ledger = Ledger(result.run_dir / "ledger.db")
    counts = Counter(booking.dataset_id for booking in ledger.events())
    ledger.close()
    assert len(counts) == 25
    assert set(counts.values()) == {2}


def test_a_poisson_cohort_prints_both_guarantees(load_digits, tmp_path):
    result = run(
        load_digits,
        tmp_path,
        "privacy.mode=client-central",
        "secure_aggregation.masking=false",
        "secure_aggregation.cohorts=poisson",
        "secure_aggregation.scale_bits=16",
        "data.population_size=40",
        "privacy.delta=1e-3",
    )
    first, second = result.guarantees
    assert first.epsilon < second.epsilon
    assert first.holds_against == ("those who see only the models",)
    assert first.holds_against != second.holds_against


def test_masking_off_is_stored_and_the_guarantee_does_not_claim_the_server(load_digits, tmp_path):
    result = run(load_digits, tmp_path, "secure_aggregation.masking=false")
    assert summary_of(result.run_dir)["masking"] is False
    masked = run(load_digits, tmp_path, name="masked")
    assert summary_of(masked.run_dir)["masking"] is True
    assert any("server" in party for party in masked.guarantees[0].holds_against)
    assert not any("server" in party for guarantee in result.guarantees for party in guarantee.holds_against)


def test_released_values_are_multiples_of_the_grid(load_digits, tmp_path):
    """R4: with FedAvg and one round, model * divisor / learning rate is an integer in grid units."""
    result = run(load_digits, tmp_path, "run.rounds=1", "training.strategy=FedAvg", "training.strategy_options={}")
    stored = RunFolder(result.run_dir).load_checkpoint()
    assert stored is not None
    grid = stored[1] * (1400 * 2**20) / -16.0
    np.testing.assert_allclose(grid, np.round(grid), atol=1e-3)
    assert np.abs(grid).max() > 1
