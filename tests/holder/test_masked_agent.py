"""Masked sessions: real agents under a coordinator that keeps to the protocol, or does not."""

import numpy as np
import pytest
from scipy.stats import chi2

from fedlearn.coordinator.attempts import Attempt, AttemptFailedError, masked_attempt, plain_attempt
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.errors import RefusedError
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.policy.roster import Roster
from fedlearn.privacy.quantization import from_lanes
from fedlearn.round.context_fields import context_fields_of
from fedlearn.secagg.transcript import Position

SESSION = "0123456789abcdef" * 2
MASKED = "secure_aggregation.masking=true"
SIGNED_REFUSAL = len(REFUSAL) + 64


class Coordinator:
    """Drives attempts over a party's agents; `meddle` may change or withhold what goes out."""

    def __init__(self, party, meddle=None, roster=None):
        self.party, self.meddle, self.roster = party, meddle, roster or party.pool.roster
        self.replies = {}

    def ask(self, stage, bodies, number=1, attempt=0):
        sent = self.meddle(stage, dict(bodies)) if self.meddle else bodies
        frames = {m: Frame(stage, SESSION, number, attempt, body).to_bytes() for m, body in sent.items()}
        replies = dict(zip(frames, self.party.pool.handle_many(stage, frames), strict=True))
        self.replies[stage] = replies
        return replies

    def run(self, number=1, attempt=0):
        party = self.party
        aggregation = party.config.secure_aggregation
        planned = Attempt(
            cohort=range(aggregation.planned_cohort),
            config=party.config.to_bytes(),
            model=party.model,
            dimension=party.layout.dimension,
            min_survivors=aggregation.min_survivors,
            ask=lambda stage, bodies, receive: [
                receive(*answer) for answer in self.ask(stage, bodies, number, attempt).items()
            ],
            before_vectors=lambda: None,
        )
        if not aggregation.masking:
            return plain_attempt(planned)
        fields = context_fields_of(party.config, party.data.plan, party.layout, self.roster.sha256)
        position = Position(bytes.fromhex(SESSION), number, attempt)
        return masked_attempt(planned, fields=fields, roster=self.roster, position=position)


def fixed_entropy(seed=7):
    return stream_entropy(lambda size: bytes([seed]) * size)


@pytest.mark.parametrize("mode", ["record-distributed", "none"])
def test_the_same_entropy_gives_the_same_integers_with_and_without_masks(play, load_digits, mode):
    overrides = (f"privacy.mode={mode}",)
    plain = Coordinator(play(load_digits(*overrides, "secure_aggregation.masking=false"), "plain", fixed_entropy()))
    masked = Coordinator(play(load_digits(*overrides, MASKED), "masked", fixed_entropy()))
    first, second = plain.run(), masked.run()
    assert first.survivors == second.survivors == 10
    np.testing.assert_array_equal(first.lanes, second.lanes)


def test_what_leaves_a_client_is_uniform_and_the_sum_is_not(play, load_digits):
    coordinator = Coordinator(play(load_digits(MASKED)))
    summed = coordinator.run()
    vector = np.frombuffer(coordinator.replies["masked"][0], "<u4", count=650)
    # Top bits of a uniform lane are fair coins (2e-6 outside of 6 sigma); a noised vector in the clear is near 0.
    assert abs(int((vector >> 31).sum()) - 325) < 6 * np.sqrt(650 / 4)
    assert np.abs(from_lanes(vector)).mean() > 2**28
    assert np.abs(from_lanes(summed.lanes)).max() < 2**26


@pytest.mark.parametrize("stage", ["advertise", "share", "masked", "consistency", "unmask"])
def test_two_of_ten_may_go_silent_at_any_stage(play, load_digits, stage):
    silent = {3, 8}
    stages = ["advertise", "share", "masked", "consistency", "unmask"]

    def meddle(now, bodies):
        late = stages.index(now) >= stages.index(stage)
        return {m: body for m, body in bodies.items() if not (late and m in silent)}

    summed = Coordinator(play(load_digits(MASKED)), meddle).run()
    assert summed.survivors == (8 if stages.index(stage) <= 2 else 10)


def test_three_of_ten_silent_before_their_vectors_end_the_attempt_and_nothing_is_unmasked(play, load_digits):
    coordinator = Coordinator(
        play(load_digits(MASKED)),
        lambda stage, bodies: {m: b for m, b in bodies.items() if stage != "masked" or m > 2},
    )
    with pytest.raises(AttemptFailedError, match="7 clients sent a vector"):
        coordinator.run()
    assert "unmask" not in coordinator.replies


def test_r06_the_noise_left_with_two_silent_is_at_least_what_was_booked(play, load_digits):
    # Empty clients, so the sum is noise alone: 2,000 clients hold 1,437 records, and the cohort is of the empty ones.
    config = load_digits(MASKED, "data.population_size=2000", "privacy.max_participations=1")
    party = play(config)
    for client in range(10):
        party.pool.holder(client).records = lambda: party.data.train.take(np.zeros(0, np.int64))
    silent = {3, 8}
    coordinator = Coordinator(
        party, lambda stage, bodies: {m: b for m, b in bodies.items() if stage != "masked" or m not in silent}
    )
    lanes = from_lanes(coordinator.run().lanes).astype(float)
    plan = party.data.plan
    booked = plan.noise_multiplier**2 * plan.sensitivity**2
    # One colluder knows its share: 7 of the 8 remain. Below the 1e-6 quantile by chance in one of a million runs.
    remaining = (lanes**2).sum() * 7 / 8
    assert remaining >= booked * chi2.ppf(1e-6, len(lanes))
    assert remaining <= booked * 1.01 * chi2.ppf(1 - 1e-6, len(lanes))


def test_refusals_are_the_same_bytes_whatever_the_stage_or_the_reason(play, load_digits):
    party = play(load_digits(MASKED))
    coordinator = Coordinator(party)
    looser = load_digits(MASKED, "privacy.target_epsilon=4")
    seen = {coordinator.ask("share", {0: b""})[0][: len(REFUSAL)]}
    for stage, body in (
        ("advertise", party.config.to_bytes()),
        ("advertise", looser.to_bytes()),
        ("share", b""),
        ("masked", party.model),
        ("consistency", b"x"),
        ("unmask", b""),
    ):
        reply = coordinator.ask(stage, {0: body})[0]
        assert len(reply) == SIGNED_REFUSAL
        seen.add(reply[: len(REFUSAL)])
    assert seen == {REFUSAL}


def test_r17_the_release_past_the_last_one_is_refused_before_a_record_is_read(play, load_digits):
    overrides = ("run.rounds=2", "run.spare_rounds=0", "privacy.max_participations=2")
    party = play(load_digits(MASKED, *overrides))
    coordinator = Coordinator(party)
    coordinator.run(1)
    coordinator.run(2)
    reads = []
    for client in range(10):
        party.pool.holder(client).records = lambda: reads.append(1)
    with pytest.raises(AttemptFailedError, match="0 clients sent a vector"):
        coordinator.run(3)
    assert not reads
    assert len(party.pool.ledger.events("client-0")) == 2


def test_r20_a_repeated_request_gets_the_same_bytes_and_another_burns_the_attempt(play, load_digits):
    party = play(load_digits(MASKED))
    sent = {}

    def remember(stage, bodies):
        sent[stage] = dict(bodies)
        return bodies

    coordinator = Coordinator(party, remember)
    coordinator.run()
    for stage in ("advertise", "share", "masked", "consistency", "unmask"):
        before = coordinator.replies[stage][0]
        assert coordinator.ask(stage, {0: sent[stage][0]})[0] == before
    assert len(party.pool.ledger.events("client-0")) == 1
    body = sent["masked"][0]
    assert coordinator.ask("masked", {0: body[:-1] + bytes([body[-1] ^ 1])})[0][:16] == REFUSAL
    assert coordinator.ask("masked", {0: body})[0][:16] == REFUSAL, "the attempt is burnt"


def test_a_restarted_agent_answers_no_attempt_that_it_may_have_answered(play, load_digits):
    Coordinator(play(load_digits(MASKED))).run(3)
    restarted = Coordinator(play(load_digits(MASKED)))
    with pytest.raises(AttemptFailedError):
        restarted.run(3)
    assert restarted.run(3, attempt=1).survivors == 10


def test_fresh_noise_and_fresh_keys_in_every_attempt(play, load_digits):
    coordinator = Coordinator(play(load_digits(MASKED)))
    first = coordinator.run(1)
    adverts = coordinator.replies["advertise"][0]
    second = coordinator.run(1, attempt=1)
    assert np.mean(first.lanes == second.lanes) < 0.01
    assert coordinator.replies["advertise"][0][16:112] != adverts[16:112]


def test_an_exception_in_training_is_no_drop_out(play, load_digits):
    party = play(load_digits(MASKED))
    party.pool.holder(4).records = lambda: 1 / 0
    assert Coordinator(party).run().survivors == 10


def test_a_roster_with_an_entry_changed_is_another_roster(play, load_digits):
    party = play(load_digits(MASKED))
    content = party.pool.roster.content.replace(b'name = "client-0"', b'name = "client-O"')
    coordinator = Coordinator(party, roster=Roster.from_bytes(content))
    with pytest.raises(AttemptFailedError, match="0 clients advertised"):
        coordinator.run()


def test_secrets_stay_in_files_of_their_owner(play, load_digits, tmp_path):
    play(load_digits(MASKED))
    assert (tmp_path / "identities.key").stat().st_mode & 0o077 == 0


def test_a_coordinator_that_opens_session_after_session_cannot_fill_memory(play, load_digits):
    party = play(load_digits(MASKED))
    body = party.config.to_bytes()
    for number in range(40):
        frame = Frame("share", f"{number:032x}", 1, 0, body).to_bytes()
        assert party.pool.handle(0, "share", frame)[:16] == REFUSAL
    assert Coordinator(party).run().survivors == 10


def test_a_release_that_the_disk_refuses_is_a_refusal_and_stays_spent(play, load_digits, monkeypatch):
    party = play(load_digits(MASKED))

    def full(reservations, fingerprints):
        raise RefusedError("the disk is full")

    monkeypatch.setattr(party.pool.ledger, "release", full)
    with pytest.raises(AttemptFailedError, match="0 clients sent a vector"):
        Coordinator(party).run()
    bookings = party.pool.ledger.events("client-0")
    assert [booking.released for booking in bookings] == [False], "reserved and not released counts as spent"
