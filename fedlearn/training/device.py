"""Where tensors are computed, and on how many threads."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import ThreadpoolController

from fedlearn.errors import ConfigError

__all__ = ["one_thread", "pick_device"]


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


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread, so that sums have one order and simulated and deployed integers are equal (privacy.md 1.4)."""
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
