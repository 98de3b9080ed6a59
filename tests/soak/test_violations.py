"""Each detector of a soak finds what it is for: agents, books and files that do wrong, one kind each."""

import json
import threading
from contextlib import closing
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from fedlearn import simulate
from fedlearn.config.run_config import RunConfig
from fedlearn.holder.frames import Frame
from fedlearn.ledger import Ledger, Reservation
from fedlearn.privacy.accounting import Event
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.run.checkpoint import RunFolder
from tests.soak import in_process, real_faults, violations
from tests.soak.in_process import InProcess
from tests.soak.schedule import Fault, Tally, draw
from tests.soak.violations import Presence, Pulse
from tests.soak.witness import Witness

SESSION = "ab" * 16


def seen(*exchanges: tuple[int, str, bytes], session: str = SESSION) -> Witness:
    witness = Witness()
    for member, stage, reply in exchanges:
        witness.note(member, Frame(stage, session, 1, 0, b"request").to_bytes(), reply)
    return witness


def test_two_vectors_of_one_attempt_are_a_violation_and_one_told_twice_is_none():
    assert not list(violations.different_releases(seen((0, "masked", b"one"), (0, "masked", b"one"))))
    (told,) = violations.different_releases(seen((0, "masked", b"one"), (0, "masked", b"two")))
    assert "member 0 gave 2 different vectors" in told


def test_shares_for_fewer_vectors_than_survivors_are_a_violation():
    vectors = [(member, "masked", b"vector %d" % member) for member in range(3)]
    assert not list(violations.unmasked_below_threshold(seen(*vectors, (0, "unmask", b"shares")), min_survivors=3))
    (told,) = violations.unmasked_below_threshold(seen(*vectors[:2], (0, "unmask", b"shares")), min_survivors=3)
    assert "member 0 unmasks 2 vectors" in told


def test_what_is_no_frame_and_was_answered_is_noticed():
    with pytest.raises(AssertionError, match="was answered"):
        Witness().note(0, b"garbage", b"a vector")


class TestBooks:
    def told(self, path: Path, *, released: bool = True) -> list[str]:
        """Of one vector that left, with a ledger that has a reservation for it."""
        event = Event(count=1, eta=Decimal(0), noise_multiplier_millionths=8_000_000, sampling_probability=Fraction(1))
        with closing(Ledger(path)) as ledger:
            unit = PrivacyUnit.RECORD
            ledger.open_dataset("digits", privacy_unit=unit, max_epsilon=30.0, max_delta=1e-5, order=None)
            booked = Reservation(
                dataset_id="digits", session=SESSION, round=1, attempt=0, event=event.to_bytes(), max_releases=10
            )
            numbers = ledger.reserve([booked])
            if released:
                ledger.release(numbers)
        witness = seen((0, "masked", b"vector"))
        return list(violations.booked_too_little(witness, {0: path}, dataset="digits", max_epsilon=30.0, delta=1e-5))

    def test_what_is_released_in_the_ledger_is_no_violation(self, tmp_path):
        assert self.told(tmp_path / "ledger.db") == []

    def test_a_vector_that_the_ledger_did_not_release_is_one(self, tmp_path):
        assert "knows of none" in self.told(tmp_path / "ledger.db", released=False)[0]

    def test_an_epsilon_below_that_of_what_left_is_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Ledger, "spent", lambda ledger, dataset: (0.001, 0.001))
        assert "says epsilon 0.001" in self.told(tmp_path / "ledger.db")[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("soak") / "run"
    simulate(RunConfig.load("digits", ["run.rounds=1"]), output=folder)
    return RunFolder(folder)


class TestRuns:
    def changed(self, run: RunFolder, to: Path, name: str, old: bytes, new: bytes) -> RunFolder:
        to.mkdir()
        for path in run.path.iterdir():
            content = path.read_bytes()
            (to / path.name).write_bytes(content.replace(old, new) if path.name == name else content)
        return RunFolder(to)

    def test_the_model_of_a_certificate_is_no_violation_and_another_is_one(self, run, tmp_path):
        assert not list(violations.models_that_differ(run, [run.file("model.safetensors")]))
        model = run.file("model.safetensors").read_bytes()
        other = self.changed(run, tmp_path / "other", "model.safetensors", model, model[:-1] + b"?")
        assert "the certificate does not hold" in next(violations.models_that_differ(other, []))
        (told,) = violations.models_that_differ(run, [other.file("model.safetensors")])
        assert "not the model of" in told

    def test_vectors_for_an_attempt_that_the_coordinator_does_not_count_are_one(self, run):
        stored = run.load_checkpoint()
        assert stored is not None
        session = stored[0].session
        assert not list(violations.unbooked_attempts(seen((0, "masked", b"vector"), session=session), run))
        witness = Witness()
        witness.note(0, Frame("masked", session, 1, 7, b"request").to_bytes(), b"vector")
        (told,) = violations.unbooked_attempts(witness, run)
        assert "no event says so" in told

    def test_a_summary_that_counts_fewer_attempts_than_released_is_one(self, run, tmp_path):
        summary = run.file("summary.json").read_bytes()
        fewer = json.dumps({**json.loads(summary), "attempts": 0}).encode()
        (told,) = violations.unbooked_attempts(
            seen(), self.changed(run, tmp_path / "run", "summary.json", summary, fewer)
        )
        assert "more attempts released" in told


@pytest.mark.parametrize("as_written", [bytes, lambda secret: secret.hex().encode()])
def test_a_secret_in_a_file_is_a_violation_and_is_not_told(tmp_path, as_written):
    (tmp_path / "log").write_bytes(b"key " + as_written(b"the secret") + b"\n")
    assert not list(violations.shown([tmp_path / "log"], [b"another"]))
    (told,) = violations.shown([tmp_path / "log"], [b"the secret"])
    assert "the secret" not in told


def test_a_traceback_at_a_user_is_a_violation():
    assert not list(violations.tracebacks({"start": "fedlearn: the disk is full"}))
    (told,) = violations.tracebacks({"start": "Traceback (most recent call last):\n  File ..."})
    assert told == "start: a traceback"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_member_that_is_away_for_two_minutes_after_its_fault_is_a_violation_told_once():
    presence = Presence(clock := Clock())
    presence.fault_begins("Ada")
    assert not list(presence.see("Ada", online=False))
    clock.now = 500
    assert not list(presence.see("Ada", online=False)), "its fault goes on"
    presence.fault_ended("Ada")
    clock.now = 619
    assert not list(presence.see("Ada", online=False))
    clock.now = 621
    assert [told.split(" is ")[0] for told in presence.see("Ada", online=False)] == ["Ada"]
    assert not list(presence.see("Ada", online=False))
    assert not list(presence.see("Ada", online=True))


def test_a_run_that_stands_still_beyond_its_deadline_is_a_violation_told_once():
    pulse = Pulse(420.0, clock := Clock())
    for clock.now, place in ((0, "round 1"), (400, "round 1"), (410, "round 2"), (800, "round 2")):
        assert not list(pulse.see(place))
    clock.now = 831
    assert len(list(pulse.see("round 2"))) == 1
    assert not list(pulse.see("round 2"))


class TestTheWholeHalf:
    """A soak of two faults in one process, as it is and with an agent or a coordinator that does wrong."""

    FAULTS = (Fault("reply lost", 1, "masked", 5), Fault("agent restarted", 2, "share", 6))

    @pytest.mark.slow
    def test_two_faults_are_seen_and_nothing_is_violated(self, tmp_path):
        tally = InProcess(tmp_path, self.FAULTS).run()
        assert tally.summary == "faults=2 kinds=2 violations=0"

    def test_an_agent_that_does_not_book_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Ledger, "release", lambda *arguments: None)
        tally = InProcess(tmp_path, self.FAULTS[:1]).run()
        assert any("knows of none" in violation for violation in tally.violations)

    def test_a_coordinator_that_hangs_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setattr(in_process, "_LIFE_SECONDS", 0.0)
        tally = InProcess(tmp_path, self.FAULTS[:1]).run()
        assert any("the coordinator hangs" in violation for violation in tally.violations)
        for life in threading.enumerate():
            if life.name == "soak-life":
                life.join(60)  # it only was too slow


@pytest.mark.parametrize("kinds", [in_process.KINDS, real_faults.KINDS])
def test_the_seed_is_the_schedule(kinds):
    assert draw(kinds, 1, part="x") == draw(kinds, 1, part="x")
    assert draw(kinds, 1, part="x") != draw(kinds, 2, part="x")
    assert len(set(draw(kinds, 1, part="x"))) == sum(times for _, times, _ in kinds)


def test_a_soak_has_enough_faults_of_enough_kinds():
    assert sum(times for _, times, _ in in_process.KINDS) >= 80
    assert sum(times for _, times, _ in real_faults.KINDS) >= 20
    assert len(real_faults.KINDS) >= 12


def test_what_was_not_seen_does_not_count():
    tally = Tally(observed=[TestTheWholeHalf.FAULTS[0]], unobserved=[TestTheWholeHalf.FAULTS[1]])
    assert tally.summary == "faults=1 kinds=1 violations=0"
