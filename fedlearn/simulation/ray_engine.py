"""The Ray engine: the same two apps on Flower's own simulation runtime, in processes of their own."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from fedlearn.coordinator.pooled_data import SimulatedData
from fedlearn.coordinator.run_data import OnRound, RoundResult
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.run.checkpoint import RunFolder
from fedlearn.run.failure import forget_failure, raise_failure

__all__ = ["check_ray", "run_on_ray"]

_POLL_SECONDS: Final = 0.2
_END_SECONDS: Final = 30.0


def run_on_ray(folder: RunFolder, data: SimulatedData, on_round: OnRound | None) -> None:
    """Run, or go on with, the run in `folder`; the agents, the ServerApp and Ray are processes that end with it.

    Guarantees:
        when this returns or raises, none of those processes runs.

    Raises:
        ConfigError: Ray is not installed, or the platform has no Unix-domain sockets.
        FedlearnError: the run is refused, or cannot finish.
    """
    check_ray()
    folder = replace(folder, path=folder.path.resolve())
    forget_failure(folder)
    stored = folder.load_checkpoint()
    told = stored[0].round if stored else 0
    folder.keep_lines("metrics.jsonl", lambda line: line["round"] <= told)
    rounds = data.config.run.rounds
    if _finished(folder, rounds):
        return
    with _supervised(folder, data.population_size) as supervisor:
        ended = False
        while not ended:
            ended = supervisor.poll() is not None
            for line in folder.lines("metrics.jsonl"):
                if line["round"] > told:
                    told = line["round"]
                    if on_round:
                        on_round(RoundResult(**line))
            if told >= rounds and _finished(folder, rounds):
                return
            time.sleep(_POLL_SECONDS)
    raise_failure(folder)
    raise RunFailedError(f"the run ended before round {rounds}; what Flower said stands in {folder.file('ray.log')}")


def check_ray() -> None:
    """Refuse where Ray cannot run, before a run folder is made.

    Raises:
        ConfigError: Ray is not installed, or the platform has no Unix-domain sockets.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "runtime.engine is \"ray\", and Ray is not installed; run pip install 'fedlearn[ray]', "
            'or take the engine "in-process"'
        )
    if os.name != "posix":
        raise ConfigError('runtime.engine is "ray", which needs Unix-domain sockets; take the engine "in-process"')


def _finished(folder: RunFolder, rounds: int) -> bool:
    stored = folder.load_checkpoint()
    return stored is not None and stored[0].round >= rounds


@contextmanager
def _supervised(folder: RunFolder, nodes: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process above all others of the run; it takes them down when its standard input closes."""
    command = [sys.executable, "-P", "-m", "fedlearn.flower.superlink", str(folder.path), str(nodes)]
    with folder.file("ray.log").open("ab") as log:
        # A session of its own: Ctrl-C in the terminal reaches this process alone, which then closes the pipe.
        supervisor = subprocess.Popen(  # noqa: S603 (our own module)
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=() if folder.lock is None else (folder.lock,),  # the run is worked on until this process is dead
        )
    try:
        yield supervisor
    finally:
        assert supervisor.stdin is not None
        supervisor.stdin.close()
        try:
            supervisor.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()
