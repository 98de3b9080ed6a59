"""Where a process meets its machine: disk, clock and records fail here when a soak says so, and nowhere else."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.data.dataset import Dataset
from fedlearn.round.source import Source
from tests.soak.schedule import Fault

SECRET_TEXT = "patient-4711 was discharged"

_true_fsync, _true_time, _true_records = os.fsync, time.time, Source.records


class Killed(BaseException):
    """The coordinator's process ends here; nobody catches it."""


@dataclass
class Borders:
    """Faults that wait at the next durable write below a folder, or at the next look at a member's records."""

    at_disk: dict[Path, tuple[Fault, Callable[[], BaseException]]] = field(default_factory=dict)
    at_records: dict[int, Fault] = field(default_factory=dict)
    clock_moved: float = 0.0
    seen: list[Fault] = field(default_factory=list)  # what has happened
    _here: threading.local = field(default_factory=threading.local)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The operating system's calls, and the holders' files, go through this object."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", self._fsync)
            patch.setattr(time, "time", lambda: _true_time() + self.clock_moved)
            patch.setattr(Source, "records", lambda source, config: self._records(source, config))
            yield

    @contextmanager
    def working_for(self, member: int) -> Iterator[None]:
        """This thread reads the records of that member."""
        self._here.member = member
        try:
            yield
        finally:
            self._here.member = -1

    def disarm(self, fault: Fault) -> None:
        """It came to nothing."""
        self.at_disk = {folder: waiting for folder, waiting in self.at_disk.items() if waiting[0] != fault}
        self.at_records = {member: waiting for member, waiting in self.at_records.items() if waiting != fault}

    def _fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        for folder in [folder for folder in self.at_disk if folder in path.parents]:
            fault, error = self.at_disk.pop(folder)
            self.seen.append(fault)
            raise error()
        _true_fsync(descriptor)

    def _records(self, source: Source, config: RunConfig) -> Dataset:
        fault = self.at_records.pop(getattr(self._here, "member", -1), None)
        if fault is None:
            return _true_records(source, config)
        self.seen.append(fault)
        if fault.kind == "records unreadable":
            raise ValueError(SECRET_TEXT)
        records = _true_records(source, config)
        return Dataset(np.full_like(records.features, np.nan), records.labels, records.task)
