"""What a server promises that adds the noise itself: booked before vectors are asked for, and drawn once."""

from dataclasses import replace

import numpy as np
import pytest

import fedlearn
from fedlearn.coordinator import rounds
from fedlearn.coordinator.rounds import new_progress
from fedlearn.coordinator.server_noise_booking import ServerNoiseBooking
from fedlearn.errors import BudgetExceededError, RefusedError, RunFailedError
from fedlearn.ledger import COORDINATOR, Ledger
from fedlearn.round.aggregation import noised_sum
from fedlearn.run.checkpoint import RunFolder
from fedlearn.simulation import chunk_work
from fedlearn.simulation.run import resume

CENTRAL = (
    "privacy.mode=client-central",
    "secure_aggregation.masking=false",
    "secure_aggregation.scale_bits=16",
    "privacy.delta=1e-3",
    "privacy.target_epsilon=8",
    "run.rounds=3",
    "run.spare_rounds=1",
)


@pytest.fixture
def central(load_digits):
    return load_digits(*CENTRAL)


def bookings(folder, dataset_id=COORDINATOR):
    ledger = Ledger(folder / "ledger.db")
    found = ledger.events(dataset_id)
    ledger.close()
    return found


class Killed(BaseException):
    """What kill -9 leaves: nobody cleans up after it."""


@pytest.mark.lengthy
def test_each_noised_sum_is_a_release_of_the_coordinators_own_account(central, tmp_path):
    fedlearn.simulate(central, output=tmp_path / "run")
    booked = bookings(tmp_path / "run")
    assert [(each.round, each.attempt, each.released) for each in booked] == [(k, 0, True) for k in (1, 2, 3)]
    assert {each.event for each in booked} == {fedlearn.plan(central).ledger_event}


def test_what_a_coordinator_promised_is_nobodys_participation(central, load_digits, tmp_path):
    rotating = load_digits(*CENTRAL, "data.population_size=40", "privacy.max_participations=1")
    fedlearn.simulate(rotating, output=tmp_path / "run")
    ledger = Ledger(tmp_path / "run" / "ledger.db")
    (session,) = {each.session for each in ledger.events()}
    assert ledger.session(session).releases == 1
    assert ledger.session(session, COORDINATOR).releases == 3
    ledger.close()


@pytest.mark.parametrize("mode", ["record-distributed", "none"])
def test_where_the_server_adds_no_noise_it_promises_nothing(load_digits, tmp_path, mode):
    fedlearn.simulate(load_digits(f"privacy.mode={mode}", "run.rounds=1"), output=tmp_path / "run")
    assert bookings(tmp_path / "run") == []


def test_a_sum_is_promised_before_vectors_are_asked_for_and_counts_if_the_process_dies(central, tmp_path, monkeypatch):
    def dies_while_clients_work(*_, **__):
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(chunk_work, "clean_sum", dies_while_clients_work)
        with pytest.raises(Killed):
            fedlearn.simulate(central, output=tmp_path / "run")
    assert [each.released for each in bookings(tmp_path / "run")] == [False]
    resume(tmp_path / "run")
    assert [(each.round, each.attempt) for each in bookings(tmp_path / "run")] == [(1, 0), (1, 1), (2, 0), (3, 0)]


def test_an_attempt_without_a_sum_costs_the_coordinator_nothing(central, tmp_path, monkeypatch):
    def nobody(attempt):
        attempt.before_vectors()
        raise rounds.AttemptFailedError("0 clients sent a vector")

    monkeypatch.setattr(rounds, "plain_attempt", nobody)
    with pytest.raises(RunFailedError, match="no spare round is left"):
        fedlearn.simulate(central, output=tmp_path / "run")
    assert bookings(tmp_path / "run") == []


@pytest.mark.parametrize("moment", ["_book", "_finish"])
def test_noise_is_drawn_once_also_if_the_process_dies_before_the_sum_is_used(central, tmp_path, monkeypatch, moment):
    drawn = []

    def draw(*arguments, **keywords):
        drawn.append(noised_sum(*arguments, **keywords))
        return drawn[-1]

    def dies(*_, **__):
        raise Killed

    monkeypatch.setattr(rounds, "noised_sum", draw)
    with monkeypatch.context() as dying:
        dying.setattr(rounds.Coordinator, moment, dies)
        with pytest.raises(Killed):
            fedlearn.simulate(central, output=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    np.testing.assert_array_equal(folder.noised_sum(), drawn[0])
    result = resume(tmp_path / "run")
    assert result.rounds == 3
    assert len(drawn) == 3, "one a round: the first was not drawn again"
    assert [(each.round, each.attempt) for each in bookings(folder.path)] == [(1, 0), (2, 0), (3, 0)]
    assert [(line["round"], line["aborted"]) for line in folder.lines("events.jsonl")] == [
        (k, False) for k in (1, 2, 3)
    ]
    assert {line["survivors"] for line in folder.lines("events.jsonl")} == {10}
    stored = folder.load_checkpoint()
    assert stored is not None
    assert stored[0].spare_rounds_left == 1, "nothing was lost"
    assert folder.noised_sum() is None, "a sum that was used is not kept"


def test_no_run_makes_more_noised_sums_than_its_plan_has_attempts(central, tmp_path):
    progress = new_progress(central)
    with ServerNoiseBooking.of_run(RunFolder(tmp_path), central, fedlearn.plan(central)) as server_noise:
        for attempt in range(4):
            server_noise.make(replace(progress, attempt=attempt))
            server_noise.keep()
        with pytest.raises((BudgetExceededError, RefusedError)):
            server_noise.make(replace(progress, attempt=4))
