"""Where tensors are computed, and on how many threads."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

from fedlearn.errors import ConfigError

__all__ = ["in_memory", "one_thread", "pick_device"]

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def pick_device(name: str) -> str:
    """The device for `runtime.device`: "cpu", "cuda", "mps", or "auto" for the first of cuda, mps, cpu that is there.

    Raises:
        ConfigError: another name, or a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if name not in available:
        raise ConfigError(f'runtime.device is "{name}"; expected one of auto, cpu, cuda, mps')
    if not available[name]:
        raise ConfigError(f'runtime.device is "{name}", which PyTorch does not find here; use "auto" or "cpu"')
    return name


def in_memory(work: Callable[[int], Result], size: int) -> tuple[Result, int]:
    """`work(size)`, or with ever smaller sizes where memory does not suffice; also the size that it sufficed for.

    `work` begins anew each time, and must leave nothing behind where it fails.

    Raises: whatever `work` raises, out of memory at size 1 included.
    """
    while True:
        try:
            return work(size), size
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
        size = max(1, size // 4)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _log.warning("out of memory; tried again with %d records at a time", size)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Apple's GPU and the CPU say it with a RuntimeError of no type of its own."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(sign in str(error).lower() for sign in ("out of memory", "can't allocate memory"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: sums have one order, and machines of a kind agree (docs/specification/privacy.md 3.1)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _thread_pools().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """The thread pools of the numerical libraries; finding them takes milliseconds, so it is done once a process."""
    return ThreadpoolController()
