"""The half of a soak in one process: deployed agents, the coordinator's own app, and faults at their borders.

Runs of a few rounds follow each other until every fault of the schedule was seen, or was tried too often.
"""

import errno
import sqlite3
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.conclusion import main as conclude
from fedlearn.flower.client_app import make_client_app
from fedlearn.flower.messenger import Messenger, Pace
from fedlearn.flower.server_app import make_server_app
from fedlearn.holder.deployed import MODELS_FOLDER, DeployedAgent
from fedlearn.holder.frames import Frame
from fedlearn.host.durable import write_whole
from fedlearn.run.checkpoint import DONE_FILE, RunFolder
from tests.faults.lossy_grid import LossyGrid, body_of
from tests.holder_files import FOUR, seed, small_roster, write_policy
from tests.soak import violations
from tests.soak.borders import SECRET_TEXT, Borders, Killed
from tests.soak.letters import LETTER_KINDS, Letters
from tests.soak.schedule import STAGES, Fault, Tally
from tests.soak.witness import Attempt, Witness

# kind, how often, at which stages
KINDS = (
    *((kind, 5, stages) for kind, stages in LETTER_KINDS),
    ("agent restarted", 5, STAGES[1:]),
    ("coordinator killed", 5, STAGES),
    ("disk full at the coordinator", 5, STAGES),
    ("disk full at a holder", 5, ("masked",)),
    ("ledger locked", 4, ("advertise", "masked")),
    ("clock moved", 4, STAGES),
    ("records unreadable", 4, ("masked",)),
    ("records not numbers", 4, ("masked",)),
)

_HURRY = Pace(poll=0.005, polls_a_second=2000, again=0.1, patience=0.0)
_ROUNDS, _SPARE, _STAGE_SECONDS = 4, 40, [3, 3, 6, 3, 3]
_DELTA, _MAX_EPSILON, _MIN_SURVIVORS = 1e-5, 30.0, 3
_TRIES = 12
_LIFE_SECONDS = 180.0
_LOCK_SECONDS = 1.0
_FAULTS_AT_ONCE = 3
# A member, or the coordinator, may be out of the attempt after these: one at a time leaves enough members.
_HARMLESS = frozenset(dict(LETTER_KINDS)) - {
    "upload stuck",
    "bundle asks with another model",
    "bundle asks for a second model",
}


class InProcess:
    """Four deployed agents in `folder`, and the faults that they are to survive."""

    def __init__(self, folder: Path, faults: Iterable[Fault]) -> None:
        self._folder, self._server, self._waiting = folder, folder / "server", deque(faults)
        self._witness, self._borders, self._tally = Witness(), Borders(), Tally()
        self._roster = small_roster()
        changes = {"max_epsilon": str(_MAX_EPSILON), "releases_per_model": "100"}
        self._policies = [write_policy(folder / f"member-{n}", dict(changes), self._roster, n) for n in range(4)]
        self._agents = [DeployedAgent(path) for path in self._policies]
        self._tried: Counter[Fault] = Counter()
        self._letters = Letters(self._witness, self._answer, self._inject)
        write_whole(folder / "coordinator.key", seed(99), mode=0o600)

    def run(self) -> Tally:
        """Until no fault waits any more."""
        with pytest.MonkeyPatch.context() as patch, self._borders.installed():
            patch.setattr("fedlearn.flower.coordination.Messenger", partial(Messenger, pace=_HURRY))
            number = 0
            while self._waiting:
                self._one_run(RunFolder(self._server / f"run-{number}"))
                number += 1
        self._tally.violations += self._checks()
        for agent in self._agents:
            agent.close()
        return self._tally

    def _one_run(self, run: RunFolder) -> None:
        run.path.mkdir(parents=True)
        attempts = _ROUNDS + _SPARE
        settings = (f"run.rounds={_ROUNDS}", f"run.spare_rounds={_SPARE}", f"privacy.max_participations={attempts}")
        seconds = f"secure_aggregation.stage_seconds={_STAGE_SECONDS}"
        run.write("config.toml", RunConfig.load("digits", [*FOUR, *settings, seconds]).to_toml().encode())
        run.write("roster.toml", self._roster.content)
        while not run.file(DONE_FILE).exists():
            if (problem := self._one_life(run)) is not None:
                self._tally.violations.append(f"{run.path.name}: {problem}")
                self._waiting.clear()
                return
        if code := conclude(run.path, self._folder / "coordinator.key"):
            self._tally.violations.append(f"{run.path.name} could not be concluded: exit code {code}")
            return
        stored = run.load_checkpoint()
        assert stored is not None
        kept = [path.parent / MODELS_FOLDER / f"{stored[0].session}.safetensors" for path in self._policies]
        self._tally.violations += violations.models_that_differ(run, [path for path in kept if path.exists()])
        self._tally.violations += violations.unbooked_attempts(self._witness, run)

    def _one_life(self, run: RunFolder) -> str | None:
        """The coordinator's app from its start to its end; what must not be, or None."""
        self._letters = letters = Letters(self._witness, self._answer, self._inject)
        letters.grid = grid = _Grid(make_client_app(letters.carry), letters, self._next_attempt)
        failed: list[BaseException] = []

        def live() -> None:
            settings: dict[str, bool | float | int | str] = {"config": str(run.file("config.toml")), "deployed": True}
            context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
            try:
                make_server_app()(grid=grid, context=context)
            except BaseException as error:
                failed.append(error)

        life = threading.Thread(target=live, name="soak-life", daemon=True)
        life.start()
        life.join(_LIFE_SECONDS)
        grid.close()
        self._end_attempt()
        if life.is_alive():
            return f"the coordinator hangs for {_LIFE_SECONDS:.0f} s"
        for error in failed:
            if not isinstance(error, Killed) and getattr(error, "errno", None) != errno.ENOSPC:
                return f"it ended with {type(error).__name__}: {error}"
        return None

    def _next_attempt(self) -> None:
        """Give the attempt its faults; those of the one before have had their time."""
        self._end_attempt()
        harmful = False
        for _ in range(len(self._waiting)):
            fault = self._waiting.popleft()
            is_harmless = fault.kind in _HARMLESS
            if (harmful and not is_harmless) or not self._letters.expect(fault):
                self._waiting.append(fault)
                continue
            harmful |= not is_harmless
            if self._letters.expecting >= _FAULTS_AT_ONCE:
                return

    def _end_attempt(self) -> None:
        for fault, observed in self._letters.outcomes():
            self._borders.disarm(fault)
            self._tried[fault] += 1
            if observed:
                self._tally.observed.append(fault)
                print(f"{len(self._tally.observed)}: {fault}", file=sys.stderr)
            elif self._tried[fault] < _TRIES:
                self._waiting.append(fault)
            else:
                self._tally.unobserved.append(fault)

    def _answer(self, member: int, frame: bytes) -> bytes:
        """The member's agent."""
        with self._borders.working_for(member):
            return self._agents[member].handle(0, Frame.from_bytes(frame).stage, frame)

    def _inject(self, fault: Fault, frame: Frame) -> Callable[[], bool]:
        """Bring about a fault of a process or its machine, just before the member is asked."""
        attempt, home = (frame.session, frame.round, frame.attempt), self._policies[fault.member].parent
        borders, seen = self._borders, self._borders.seen

        def refused() -> bool:
            answers = [
                e for e in self._witness.seen if (e.member, e.stage, e.attempt) == (fault.member, fault.stage, attempt)
            ]
            return bool(answers) and all(answer.refused for answer in answers)

        match fault.kind:
            case "agent restarted":
                self._agents[fault.member].close()
                self._agents[fault.member] = DeployedAgent(self._policies[fault.member])
                return refused
            case "coordinator killed":
                borders.at_disk[self._server] = fault, Killed
            case "disk full at the coordinator":
                borders.at_disk[self._server] = fault, lambda: OSError(errno.ENOSPC, SECRET_TEXT)
            case "disk full at a holder":
                borders.at_disk[home] = fault, lambda: OSError(errno.ENOSPC, SECRET_TEXT)
                return lambda: fault in seen and refused()
            case "ledger locked":
                _lock_for_a_while(home / "ledger.db")
            case "clock moved":
                before = time.time()
                borders.clock_moved += fault.among((3600.0, -3600.0, 400.0, -400.0))
                return lambda: abs(time.time() - before) > 300
            case _:
                borders.at_records[fault.member] = fault
                return lambda: fault in seen and not refused()
        return lambda: fault in seen

    def _checks(self) -> list[str]:
        ledgers = {member: path.parent / "ledger.db" for member, path in enumerate(self._policies)}
        shown = [path for path in (*self._server.rglob("*"), *self._folder.glob("*.log")) if path.is_file()]
        secrets = [SECRET_TEXT.encode(), *(path.with_name("identity.key").read_bytes() for path in self._policies)]
        budget = {"dataset": "digits", "max_epsilon": _MAX_EPSILON, "delta": _DELTA}
        return [
            *violations.different_releases(self._witness),
            *violations.unmasked_below_threshold(self._witness, min_survivors=_MIN_SURVIVORS),
            *violations.booked_too_little(self._witness, ledgers, **budget),
            *violations.shown(shown, secrets),
            *violations.tracebacks({str(path): path.read_text() for path in shown if path.suffix == ".log"}),
        ]


class _Grid(LossyGrid):
    """Says when an attempt begins, before its first letter is sent."""

    def __init__(self, app: object, letters: Letters, next_attempt: Callable[[], None]) -> None:
        super().__init__(app, 4, letters.fate_of)  # type: ignore[arg-type]
        self._next_attempt = next_attempt
        self._last: Attempt | None = None

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        asked = list(messages)
        frame = Frame.from_bytes(body_of(asked[0]))
        attempt = (frame.session, frame.round, frame.attempt)
        if frame.stage == STAGES[0] and attempt != self._last:
            self._last = attempt
            self._next_attempt()
        return super().push_messages(asked)


def _lock_for_a_while(path: Path) -> None:
    """Somebody else holds a ledger."""
    held = threading.Event()

    def hold() -> None:
        database = sqlite3.connect(path, isolation_level=None, timeout=30)
        database.execute("BEGIN IMMEDIATE")
        held.set()
        time.sleep(_LOCK_SECONDS)
        database.execute("ROLLBACK")
        database.close()

    threading.Thread(target=hold, daemon=True).start()
    held.wait(30)
