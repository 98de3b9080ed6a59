"""A crew of processes on this machine, forked once the data is loaded: one thread each, records and weights shared.

Records are the parent's memory, which nobody writes. Weights lie in one shared map, each worker's sum in another. What
passes through a pipe is a chunk in bytes, and one byte back. A worker whose pipe closes ends; a worker that is lost
leaves its chunk to the others.
"""

import logging
import mmap
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Final, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedlearn.agent.crew import Chunk, SumOfChunk
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import IntVector

__all__ = ["Processes", "worker_count"]

_DONE: Final = b"\x01"
_END_SECONDS: Final = 5.0

Number = TypeVar("Number", np.float64, np.int64)

_log = logging.getLogger(__name__)


def worker_count(asked: int | Literal["auto"], device: str) -> int:
    """How many processes `runtime.workers` means: "auto" is one a core, and on a GPU one.

    Raises:
        ConfigError: several were asked, and the device or the system cannot share them.
    """
    can_fork = sys.platform == "linux"  # elsewhere the libraries' threads do not survive a fork
    if asked == "auto":
        return len(os.sched_getaffinity(0)) if can_fork and device == "cpu" else 1
    if asked > 1 and device != "cpu":
        raise ConfigError(
            f'runtime.workers is {asked} on device "{device}"; a GPU is fed by one process with large blocks: expected '
            '1, or runtime.device = "cpu"'
        )
    if asked > 1 and not can_fork:
        raise ConfigError(f"runtime.workers is {asked}; more than one process needs Linux: expected 1")
    return asked


class _Worker(NamedTuple):
    process: ForkProcess
    pipe: Connection
    sum: IntVector  # (d,), in memory that both processes see


class Processes:
    """So many workers for vectors of `dimension` entries, which each call `sum_of_chunk`; as `Crew`."""

    def __init__(self, count: int, dimension: int, sum_of_chunk: SumOfChunk) -> None:
        self._weights: Vector = _shared(dimension, np.float64)
        self._workers: list[_Worker] = []
        for _ in range(count):
            self._hire(dimension, sum_of_chunk)

    def clean_sum(self, weights: Vector, chunks: Sequence[Chunk]) -> IntVector:
        """As `Crew`."""
        self._weights[:] = weights
        total = np.zeros(len(weights), dtype=np.int64)
        waiting, busy = deque(chunks), dict[Connection, tuple[_Worker, Chunk]]()
        idle = list(self._workers)
        while waiting or busy:
            while waiting and idle:
                self._give(idle.pop(), waiting, busy)
            if not busy:
                raise RunFailedError("every worker process of the run ended before its time; was memory short?")
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker, chunk = busy.pop(pipe)
                if self._has_answered(worker):
                    total += worker.sum
                    idle.append(worker)
                else:
                    waiting.appendleft(chunk)
        return total

    def close(self) -> None:
        """As `Crew`."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(_END_SECONDS)
            worker.process.kill()
            worker.process.join()
        self._workers = []

    def _hire(self, dimension: int, sum_of_chunk: SumOfChunk) -> None:
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        shared_sum: IntVector = _shared(dimension, np.int64)
        not_theirs = [worker.pipe for worker in self._workers] + [ours]
        process = fork.Process(
            target=_serve, args=(theirs, not_theirs, self._weights, shared_sum, sum_of_chunk), daemon=True
        )
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours, shared_sum))

    def _give(self, worker: _Worker, waiting: deque[Chunk], busy: dict[Connection, tuple[_Worker, Chunk]]) -> None:
        chunk = waiting.popleft()
        try:
            worker.pipe.send_bytes(chunk.to_bytes())
        except OSError:
            self._is_lost(worker)
            waiting.appendleft(chunk)
            return
        busy[worker.pipe] = (worker, chunk)

    def _has_answered(self, worker: _Worker) -> bool:
        with suppress(EOFError, OSError):
            if worker.pipe.recv_bytes() == _DONE:
                return True
        self._is_lost(worker)
        return False

    def _is_lost(self, worker: _Worker) -> None:
        _log.warning("worker process %d is lost; the others take over its clients", worker.process.pid)
        worker.pipe.close()
        self._workers = [other for other in self._workers if other is not worker]


def _serve(
    pipe: Connection,
    not_ours: Sequence[Connection],
    weights: Vector,
    shared_sum: IntVector,
    sum_of_chunk: SumOfChunk,
) -> None:
    """A worker's life: chunk after chunk, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches everybody; the parent decides
    for other in not_ours:
        other.close()  # or a parent that dies would not close this pipe
    torch.set_num_threads(1)  # for good: the parent's threads were not forked
    with suppress(EOFError, OSError):
        while True:
            shared_sum[:] = sum_of_chunk(weights, Chunk.from_bytes(pipe.recv_bytes()))
            pipe.send_bytes(_DONE)


def _shared(entries: int, kind: type[Number]) -> NDArray[Number]:
    """Zeros (entries,) that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, max(1, entries) * 8), dtype=kind, count=entries)
