"""`fedlearn server start`: the coordinator's processes, for as long as it is up.

fedlearn server start
  ├ superlink_gate            Flower's SuperLink; below it SuperExec and the ServerApp of a run
  ├ (a thread)                the endpoint for joining, while anybody is awaited
  └ fedlearn.coordinator.conclusion       at the end of a run

Everything it must remember is in files (`Federation`, `Runs`, run folders): after any crash the next start goes on.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

from fedlearn.crypto.certificates import node_key_bytes
from fedlearn.deployment.background import only_one, process_of
from fedlearn.deployment.monitoring import MetricsEndpoint, exposition, rounds_after
from fedlearn.deployment.parts import Part
from fedlearn.deployment.runs import BookedRun, Facts, RunKeeper, Runs, Step
from fedlearn.deployment.superlink_process import SuperLinkProcess, control_of
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.join_endpoint import JoinEndpoint, listen
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.errors import ConfigError, FedlearnError, RunFailedError
from fedlearn.flower.control import Control
from fedlearn.flower.sign_of_life import is_worked_on, last_sign
from fedlearn.host.logs import Tell
from fedlearn.host.memory_limits import is_disk_full
from fedlearn.host.process_tree import adopt_orphans
from fedlearn.run.checkpoint import DONE_FILE, RunFolder, load_run
from fedlearn.run.failure import FAILURE_FILE, forget_failure, why_failed

__all__ = ["Service", "served_already", "service_lock", "service_process"]

_TICK_SECONDS: Final = 0.5
_NODES_SECONDS: Final = 5.0
_LONGEST_PAUSE: Final = 30.0


class Service:
    """The coordinator of one home; `tell` is given a sentence whenever an operator would want one.

    With a `metrics_port` the loopback has counts for Prometheus there, in plain text.
    """

    def __init__(self, home: ServerHome, tell: Tell, *, metrics_port: int | None = None) -> None:
        self._home, self._tell, self._metrics_port = home, tell, metrics_port
        self._federation, self._runs = Federation(home.database_path), Runs(home.database_path)
        self._superlink = SuperLinkProcess(home)
        self._endpoint: JoinEndpoint | None = None
        self._control: Control | None = None
        self._keeper, self._kept, self._rounds = RunKeeper(), "", 0
        self._told_rounds, self._online, self._restarts = 0, -1, 0
        self._conclusion: Part | None = None
        self._certificate = b""
        self._last_trouble = ""
        self._pause, self._next_start, self._next_nodes = 1.0, 0.0, 0.0

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Guarantees:
            when it returns or raises, nothing that it started runs.

        Raises:
            ConfigError: another one serves this home, or a port is taken.
            RunFailedError: the SuperLink does not start the first time.
        """
        with only_one(service_lock(self._home), otherwise=lambda process: served_already(self._home, process)):
            for port in (self._home.port, self._home.join_port):
                listen(self._home.host, port).close()
            adopt_orphans()
            port_of_metrics = self._metrics_port
            metrics = None if port_of_metrics is None else MetricsEndpoint(port_of_metrics, self._exposition)
            try:
                self._start_superlink()
                self._tell(f"SuperLink at {self._home.superlink_address}")
                while not stop.wait(_TICK_SECONDS):
                    self._tick()
            finally:
                if metrics is not None:
                    metrics.close()
                self._close()

    def _exposition(self) -> str:
        return exposition(
            self._home,
            self._runs.all(),
            members=len(self._federation.in_roster()),
            online=max(0, self._online),
            superlink_up=self._superlink.is_alive,
            superlink_restarts=self._restarts,
        )

    def _tick(self) -> None:
        try:
            self._look_after_certificate()
            self._look_after_superlink()
            self._look_after_endpoint()
            if self._superlink.is_alive:
                self._look_after_nodes()
                self._look_after_run()
        except Exception as error:
            # Whatever it is, the next tick may find it gone: a full disk, a SuperLink that does not answer yet.
            self._trouble(str(error) if isinstance(error, FedlearnError) else _told(error))

    def _trouble(self, sentence: str) -> None:
        """Tell of it once, however often it comes."""
        if sentence != self._last_trouble:
            self._tell(sentence)
        self._last_trouble = sentence

    def _start_superlink(self) -> None:
        self._certificate = self._home.certificate.fingerprint
        self._keeper.interrupted()
        self._superlink.start()
        self._control = control_of(self._home)
        self._next_nodes = 0.0

    def _stop_superlink(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        self._superlink.stop()
        self._conclusion = None
        self._keeper.interrupted()

    def _restart_superlink(self) -> None:
        self._restarts += 1
        self._stop_superlink()
        self._start_superlink()

    def _look_after_superlink(self) -> None:
        now, stuck = time.monotonic(), self._superlink.is_stuck
        if (self._superlink.is_alive and not stuck) or now < self._next_start:
            return
        self._tell(f"Flower's SuperLink {'does not answer' if stuck else 'is gone'}; starting it again")
        self._next_start, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        self._restart_superlink()

    def _look_after_certificate(self) -> None:
        if self._home.certificate.fingerprint != self._certificate:
            self._tell("there is a new certificate; starting again with it")
            self._close_endpoint()
            self._stop_superlink()
            self._start_superlink()

    def _look_after_endpoint(self) -> None:
        awaited = self._federation.is_awaited()
        if self._endpoint is not None and (not awaited or not self._endpoint.is_alive):
            self._close_endpoint()
            self._tell("nobody is awaited: the endpoint for joining is closed")
        if self._endpoint is None and awaited:
            self._endpoint = JoinEndpoint(self._home, self._federation)
            self._tell(f"joining at {self._home.join_address}")

    def _close_endpoint(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def _look_after_nodes(self) -> None:
        """Flower knows the nodes of the roster's members and no others."""
        if time.monotonic() < self._next_nodes or self._control is None:
            return
        self._next_nodes = time.monotonic() + _NODES_SECONDS
        members = [member.applicant for member in self._federation.in_roster() if member.applicant]
        wanted = {node_key_bytes(applicant.node_key) for applicant in members}
        known = {node.key: node for node in self._control.nodes() if node.is_registered}
        self._superlink.heard()
        for key in wanted - set(known):
            self._control.register(key)
        for key in set(known) - wanted:
            self._control.unregister(known[key].node_id)
            self._tell("a node was taken out of Flower")
        self._pause = 1.0
        self._tell_online(sum(node.is_online for key, node in known.items() if key in wanted), len(wanted))

    def _tell_online(self, online: int, nodes: int) -> None:
        if online != self._online:
            self._tell(f"{online} of {nodes} nodes are online", online=online, nodes=nodes)
        self._online = online

    def _look_after_run(self) -> None:
        run = self._runs.turn()
        if run is None:
            return
        folder = RunFolder(self._home.folder / "runs" / run.id)
        if run.id != self._kept:
            self._keeper, self._kept = RunKeeper(), run.id
            self._rounds = load_run(folder.file("config.toml")).run.rounds
            self._told_rounds = len(rounds_after(folder, 0))  # none, where the run did not go on from before
        for done in rounds_after(folder, self._told_rounds):
            self._told_rounds = done["round"]
            self._tell(f"run {run.id}: round {done['round']} of {self._rounds} is done", run=run.id, **done)
        if run.to_stop:
            self._end_in_flower(run)
            self._runs.end(run.id, "stopped")
            self._tell(f"run {run.id} is stopped", run=run.id)
            return
        facts = _facts(folder, self._told_rounds, self._rounds)
        if not facts.room:
            self._trouble(f"the disk of {folder.path} is full; make room: until then no run is started or concluded")
        self._do(self._keeper.decide(facts), run, folder)

    def _do(self, step: Step, run: BookedRun, folder: RunFolder) -> None:
        if step is Step.RESTART:
            self._tell(f"run {run.id} gives no sign of life; starting Flower's SuperLink again", run=run.id)
            self._restart_superlink()
        if step in (Step.RESTART, Step.SUBMIT):
            self._submit(run, folder)
        elif step is Step.CONCLUDE:
            self._conclude(run, folder)
        elif step is Step.FINISHED:
            self._end_in_flower(run)
            self._runs.end(run.id, "finished")
            self._tell(f"run {run.id} is finished: {folder.path}", run=run.id)
        elif step is Step.FAILED:
            self._fail(run, folder, why_failed(folder))
        elif step is Step.GIVE_UP:
            self._fail(run, folder, f"it does not come to life; what Flower said stands in {self._superlink.log_path}")

    def _submit(self, run: BookedRun, folder: RunFolder) -> None:
        assert self._control is not None
        self._end_in_flower(run)
        forget_failure(folder)
        self._keeper.submitted(time.monotonic())
        number = self._control.submit(folder.file("config.toml"))
        self._runs.submitted(run.id, number)
        self._tell(f"run {run.id} {'goes on' if run.number else 'begins'}", run=run.id)

    def _end_in_flower(self, run: BookedRun) -> None:
        """What Flower still believes to go on must not get in the way of what does."""
        if run.number is not None and self._control is not None:
            with contextlib.suppress(RunFailedError):
                if not self._control.has_ended(run.number):
                    self._control.stop(run.number)

    def _conclude(self, run: BookedRun, folder: RunFolder) -> None:
        log = self._home.folder / "conclusion.log"
        if self._conclusion is None:
            command = [
                sys.executable,
                "-P",
                "-m",
                "fedlearn.coordinator.conclusion",
                str(folder.path),
                str(self._home.identity_path),
            ]
            self._conclusion = Part("conclusion", command, dict(os.environ), log)
            self._conclusion.start()
        elif not self._conclusion.is_alive:
            code = self._conclusion.process.returncode if self._conclusion.process else None
            self._conclusion = None
            if code and is_disk_full(folder.path):
                return  # once more, when there is room
            if code:
                self._fail(run, folder, why_failed(folder) or f"its report cannot be written; see {log}")

    def _fail(self, run: BookedRun, folder: RunFolder, reason: str) -> None:
        from fedlearn.report import write_failed_page  # heavy, and few runs fail

        self._end_in_flower(run)
        try:
            write_failed_page(folder.path, name=run.id, reason=reason)
        except ConfigError as error:
            self._trouble(str(error))
        self._runs.end(run.id, "failed", reason)
        self._tell(f"run {run.id} failed: {reason}", run=run.id)

    def _close(self) -> None:
        self._close_endpoint()
        self._stop_superlink()
        self._federation.close()
        self._runs.close()


def _told(error: Exception) -> str:
    """An error that nobody foresaw, without what it quotes."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror}"
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = f"{traceback.tb_frame.f_globals.get('__name__')}:{traceback.tb_lineno}" if traceback else "nowhere"
    return f"{type(error).__name__} at {place}; going on"


def _facts(folder: RunFolder, done: int, rounds: int) -> Facts:
    """What is seen of a run, of whose rounds so many are done. The checkpoint is not read: it may be large."""
    return Facts(
        now=time.monotonic(),
        rounds=done,
        alive=is_worked_on(folder),
        last_sign=last_sign(folder),
        trained=done >= rounds,
        done=folder.file(DONE_FILE).is_file(),
        concluded=folder.file("summary.json").is_file(),
        failed=bool(folder.lines(FAILURE_FILE)),
        room=not is_disk_full(folder.path),
    )


def service_process(home: ServerHome) -> int | None:
    """The id of the process that serves a home; None where none does."""
    return process_of(service_lock(home))


def service_lock(home: ServerHome) -> Path:
    """What the process that serves a home holds."""
    return home.folder / "service.lock"


def served_already(home: ServerHome, process: int | None) -> str:
    """Why it cannot be served once more."""
    return f"{home.folder}: served already, by process {process}; fedlearn server stop ends it"
