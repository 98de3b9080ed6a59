"""A pool of processes on this machine, forked once the data is loaded: one thread each, records and weights shared.

Records are the parent's memory, which nobody writes. Weights lie in one shared map, a worker's result in another. What
passes through a pipe is a chunk in bytes, and one byte back. A worker whose pipe closes ends; a worker that is lost
leaves its chunk to the others.
"""

import logging
import math
import mmap
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import IntVector
from fedlearn.simulation.worker_pool import Chunk, SumOfChunk

__all__ = ["Processes", "SummingProcesses", "worker_count"]

_DONE: Final = b"\x01"
_END: Final = b""
_END_SECONDS: Final = 5.0

Shape = tuple[tuple[int, ...], type[np.generic]]

_log = logging.getLogger(__name__)


def worker_count(asked: int | Literal["auto"], device: str) -> int:
    """How many processes `runtime.workers` means: "auto" is one a core; on a GPU, and in a worker of a pool, one.

    Raises:
        ConfigError: several were asked, and the device, the system or a pool cannot have them.
    """
    can_fork = sys.platform == "linux"  # elsewhere the libraries' threads do not survive a fork
    in_pool = multiprocessing.current_process().daemon  # which may have no children
    if asked == "auto":
        return len(os.sched_getaffinity(0)) if can_fork and device == "cpu" and not in_pool else 1
    if asked > 1 and in_pool:
        raise ConfigError(
            f"runtime.workers is {asked}, and this process is a worker of a pool itself, which may not start others: "
            'expected 1 or "auto"'
        )
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
    result: NDArray[Any]  # in memory that both processes see


class Processes:
    """So many workers, which each call `work` for chunks; `empty` is an array like the largest that it gives.

    Guarantees:
        every chunk is computed to its end once, whoever is lost;
        a chunk that is begun anew begins with its seed.
    """

    def __init__(self, count: int, dimension: int, work: Callable[[Vector, Chunk], NDArray[Any]], empty: Shape) -> None:
        self._weights: Vector = _shared((dimension,), np.float64)
        self._workers: list[_Worker] = []
        for _ in range(count):
            self._hire(work, empty)

    def each(self, weights: Vector, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, NDArray[Any]]]:
        """Each chunk with its result, as they come; the result is overwritten after the next step.

        Raises:
            RunFailedError: every worker is lost.
        """
        self._weights[:] = weights
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
                    yield chunk, worker.result
                    idle.append(worker)
                else:
                    waiting.appendleft(chunk)

    def close(self) -> None:
        """Let all workers go, and wait until they are gone."""
        for worker in self._workers:
            with suppress(OSError):
                worker.pipe.send_bytes(_END)  # a later pool's workers have copies of this pipe, which then stays open
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(_END_SECONDS)
            worker.process.kill()
            worker.process.join()
        self._workers = []

    def _hire(self, work: Callable[[Vector, Chunk], NDArray[Any]], empty: Shape) -> None:
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        result = _shared(*empty)
        not_theirs = [worker.pipe for worker in self._workers] + [ours]
        process = fork.Process(target=_serve, args=(theirs, not_theirs, self._weights, result, work), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours, result))

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


@dataclass(frozen=True, slots=True)
class SummingProcesses:
    """Processes whose results are sums of chunks; as `WorkerPool`."""

    processes: Processes

    @classmethod
    def of(cls, count: int, dimension: int, sum_of_chunk: SumOfChunk) -> Self:
        """So many workers for vectors of `dimension` entries."""
        return cls(Processes(count, dimension, sum_of_chunk, ((dimension,), np.int64)))

    def clean_sum(self, weights: Vector, chunks: Sequence[Chunk]) -> IntVector:
        """As `WorkerPool`."""
        total = np.zeros(len(weights), dtype=np.int64)
        for _, part in self.processes.each(weights, chunks):
            total += part
        return total

    def close(self) -> None:
        """As `WorkerPool`."""
        self.processes.close()


def _serve(
    pipe: Connection,
    not_ours: Sequence[Connection],
    weights: Vector,
    result: NDArray[Any],
    work: Callable[[Vector, Chunk], NDArray[Any]],
) -> None:
    """A worker's life: chunk after chunk, until it is told to end or the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches everybody; the parent decides
    for other in not_ours:
        other.close()  # or a parent that dies would not close this pipe
    torch.set_num_threads(1)  # for good: the parent's threads were not forked
    with suppress(EOFError, OSError):
        while (asked := pipe.recv_bytes()) != _END:
            found = work(weights, Chunk.from_bytes(asked))
            result[: len(found)] = found
            pipe.send_bytes(_DONE)


def _shared(shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
    """Zeros that forked processes share."""
    entries, size = math.prod(shape), np.dtype(kind).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, entries * size)), dtype=kind, count=entries).reshape(shape)
