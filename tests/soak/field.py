"""A real federation that a soak keeps alive: proxies and taps beside every node, and who is watched all the time."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fedlearn.deployment.operating import member_states
from fedlearn.deployment.runs import ENDED, BookedRun, Runs
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.flower.node_app import SOCKET_KEY
from fedlearn.holder.deployed import MODELS_FOLDER
from fedlearn.run.checkpoint import RunFolder
from tests.e2e.real_federation import BLOCKS, NAMES, NODE, ROOT, RealFederation, kill
from tests.soak import violations
from tests.soak.tap import Tap
from tests.soak.violations import Presence, Pulse
from tests.soak.witness import Witness

MIN_SURVIVORS, DELTA, MAX_EPSILON = 3, 1e-5, 30.0

_RUN = (
    *("run.rounds=3", "run.spare_rounds=60", "privacy.max_participations=63"),
    "secure_aggregation.stage_seconds=[45, 45, 90, 45, 45]",
)
_DISK_MEGABYTES = 1500  # a run asks for one free gigabyte
_WATCH_SECONDS = 2.0
_STANDSTILL_SECONDS = 420.0
_CLOCK = ROOT / "tests" / "e2e" / "moved_clock"


class Field(RealFederation):
    """The tutorial's federation with small disks, clocks that can be moved, and a holder's policy for many runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.witness, self.told = folder, Witness(), list[str]()
        self.taps: dict[str, Tap] = {}
        self.said: dict[str, str] = {}  # what commands said to their users
        self._mounted: list[Path] = []
        self._presence, self._pulse = Presence(), Pulse(_STANDSTILL_SECONDS)
        self._watched, self._over, self.wanted = threading.Event(), threading.Event(), True
        self._give_small_disks()
        holder = BLOCKS["file=holder.toml"].replace("max_epsilon = 3.0", f"max_epsilon = {MAX_EPSILON}")
        holder = holder.replace("releases_per_model = 4", "releases_per_model = 100")
        script, _, _ = BLOCKS["run=federation"].rpartition("fedlearn server run")
        # Each holder has a clock of its own.
        script = script.replace("fedlearn client start", "MOVED_CLOCK=$PWD/clock-$name fedlearn client start")
        path = {"PYTHONPATH": f"{ROOT}:{_CLOCK}"}
        super().__init__(folder, holder=holder, script=script, proxied=True, environment=path)
        self._keep_said("start", self.started)
        if self.started.returncode:
            raise RuntimeError(self.started.stderr)
        self._home = ServerHome.load(folder / "demo" / "operator")
        for name in NAMES:
            self._tap(name)

    def _give_small_disks(self) -> None:
        """Every party's files on a file system of their own, where the machine allows it."""
        for party in ("operator", *NAMES):
            place = self.folder / "demo" / party
            place.mkdir(parents=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MEGABYTES}m,mode=0700", "tmpfs", str(place)]
            if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
                self._mounted.append(place)

    @property
    def has_small_disks(self) -> bool:
        """Whether a disk can be filled here."""
        return len(self._mounted) == 1 + len(NAMES)

    def _tap(self, name: str) -> None:
        """From its next start on, the member's node finds the tap where it looks for its agent."""
        self.taps[name] = tap = Tap(NAMES.index(name), self.home(name), self.witness)
        node = self.home(name) / "node.toml"
        agent = str(self.home(name) / "agent.sock")
        node.write_text(node.read_text().replace(f'{SOCKET_KEY} = "{agent}"', f'{SOCKET_KEY} = "{tap.path}"'))
        assert str(tap.path) in node.read_text()
        for process in self.of_holder(name, NODE):
            kill(process, signal.SIGTERM)

    def _printed(self, command: str) -> str:
        done = self.shell(command, seconds=240)
        self._keep_said(command, done)
        return done.stdout

    def _keep_said(self, command: str, done: "subprocess.CompletedProcess[str]") -> None:
        self.said[f"{len(self.said)}: {command.splitlines()[0]}"] = done.stdout + done.stderr

    # ---------------------------------------------------------------- watching

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While a soak is on: members come back in time, runs go on, and the next one begins when one has ended."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            watcher.join(60)

    def _watch(self) -> None:
        while not self._over.wait(_WATCH_SECONDS):
            try:
                self._look()
            except Exception as error:  # a full disk is no reason to look away
                print(f"  (not seen: {type(error).__name__} {error})", file=sys.stderr)

    def _look(self) -> None:
        online = self.present()
        for name in NAMES:
            self.told += self._presence.see(name, online=name in online)
        last = self.runs()[-1:]
        if not last or (last[0].state in ENDED and self.wanted):
            self.begin(*_RUN)
            return
        place = RunFolder(self.server / "runs" / last[0].id)
        stored = place.load_checkpoint()
        if last[0].state not in ENDED:
            self.told += self._pulse.see(
                (last[0].id, stored and (stored[0].round, stored[0].attempt, stored[0].asking))
            )

    def present(self) -> set[str]:
        """The members whose nodes the SuperLink has heard of lately, asked of itself."""
        book = Federation(self._home.database_path)
        try:
            return {name for name, state in member_states(self._home, book).items() if state == "online"}
        finally:
            book.close()

    def runs(self) -> list[BookedRun]:
        """The coordinator's book of runs."""
        book = Runs(self._home.database_path)
        try:
            return book.all()
        finally:
            book.close()

    @property
    def port(self) -> int:
        """Where the SuperLink listens."""
        return self._home.port

    @contextlib.contextmanager
    def disturbing(self, names: Iterable[str]) -> Iterator[None]:
        """While a fault of these members is on; then they have their time to come back."""
        for name in names:
            self._presence.fault_begins(name)
        try:
            yield
        finally:
            for name in names:
                self._presence.fault_ended(name)

    def soon(self, what: Callable[[], object], seconds: float) -> bool:
        """Whether it is true within so many seconds."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    # ---------------------------------------------------------------- the end

    def finish(self, *, seconds: float) -> None:
        """Let the last run end; one that does not, or failed, is a violation."""
        self.wanted = False
        if not self.soon(lambda: self.runs()[-1].state in ENDED, seconds):
            self.told.append(f"run {self.runs()[-1].id} does not end within {seconds:.0f} s after the last fault")
        self.told += [f"run {run.id} is {run.state}: {run.reason}" for run in self.runs() if run.state == "failed"]

    def check(self) -> list[str]:
        """Every violation that the files and the witness show."""
        found = [
            *violations.different_releases(self.witness),
            *violations.unmasked_below_threshold(self.witness, min_survivors=MIN_SURVIVORS),
            *violations.booked_too_little(
                self.witness,
                {number: self.home(name) / "ledger.db" for number, name in enumerate(NAMES)},
                dataset="digits",
                max_epsilon=MAX_EPSILON,
                delta=DELTA,
            ),
            *violations.tracebacks(self.said | self._logs_for_users()),
            *violations.shown(self._seen_by_others(), self._secrets()),
        ]
        for run in self.runs():
            if run.state == "finished":
                found += self._check_run(RunFolder(self.server / "runs" / run.id))
        return found

    def _check_run(self, run: RunFolder) -> list[str]:
        stored = run.load_checkpoint()
        assert stored is not None
        kept = [self.home(name) / MODELS_FOLDER / f"{stored[0].session}.safetensors" for name in NAMES]
        return [
            *violations.models_that_differ(run, [path for path in kept if path.exists()]),
            *violations.unbooked_attempts(self.witness, run),
        ]

    def _logs_for_users(self) -> dict[str, str]:
        """What stands in logs that are fedlearn's own; Flower's programs write theirs to others."""
        logs = [self.server / "server.log", *(self.home(name) / "log" / "start.log" for name in NAMES)]
        logs += [self.home(name) / "log" / "agent.jsonl" for name in NAMES]
        return {str(log): log.read_text() for log in logs if log.exists()}

    def _seen_by_others(self) -> list[Path]:
        """Everything at the server but its own keys, and every log."""
        server = [path for path in self.server.rglob("*") if path.is_file() and path.suffix != ".key"]
        return [*server, *(path for name in NAMES for path in (self.home(name) / "log").iterdir())]

    def _secrets(self) -> list[bytes]:
        keys = [self.home(name) / file for name in NAMES for file in ("identity.key", "node.key")]
        codes = [line.split()[1].encode() for line in (self.folder / "demo" / "codes").read_text().splitlines()]
        own = [self.server / file for file in ("identity.key", "ca.key", "server.key")]
        return [*(path.read_bytes() for path in (*keys, *own)), *codes]

    def end(self) -> None:
        """Stop everything, whatever state it is in, and give the disks back."""
        try:
            ended = self.shell(BLOCKS["run=end"].replace("\n", " || true\n"))
            self._keep_said("stop", ended)
        finally:
            for proxy in self.proxies.values():
                proxy.close()
            for tap in self.taps.values():
                tap.close()

    def unmount(self) -> None:
        """Give the disks back, with all that is on them."""
        for place in self._mounted:
            subprocess.run(["umount", "-l", str(place)], check=False)

    def parts(self, name: str) -> dict[str, object]:
        """What `client start` says of a holder's parts."""
        try:
            told = json.loads((self.home(name) / "state.json").read_text())
        except (OSError, ValueError):
            return {}
        return dict(told["parts"])
