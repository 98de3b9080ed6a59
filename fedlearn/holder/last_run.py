"""Beside the policy, for `client status`: what went wrong with the records in the last run of each data set.

It stays on this machine: to the coordinator an unusable row is absent, and failed work is zeros and noise.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedlearn.bounded import read_json
from fedlearn.errors import ConfigError
from fedlearn.host.durable import read_small, write_whole
from fedlearn.round.source import Unusable

__all__ = ["FailedWork", "WorkWatch", "failed_work_of_last_run", "keep_unusable", "unusable_of_last_run"]

_UNUSABLE_FILE: Final = "unusable.json"
_FAILED_FILE: Final = "failed_work.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FailedWork:
    """How often local work failed in a session; `why` is the class of the last error, whose place the log has."""

    session: str
    releases: int
    why: str
    when: str  # UTC, ISO 8601

    @property
    def sentence(self) -> str:
        """What the holder is told."""
        return (
            f"local work failed in {self.releases} releases, zeros and noise were sent; the last was {self.why} at "
            f"{self.when} (log/agent.jsonl has its place)"
        )

    def as_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {"session": self.session, "releases": self.releases, "why": self.why, "when": self.when}


@dataclass(slots=True)
class WorkWatch:
    """Notes the failed local work of one data set in one session, also over restarts of the agent."""

    folder: Path
    dataset_id: str
    session: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _noting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self) -> None:
        """Work of this session begins: what another one left is not of the last run any more."""
        known = failed_work_of_last_run(self.folder)
        if self.dataset_id in known and known[self.dataset_id].session != self.session:
            self._keep({name: told for name, told in known.items() if name != self.dataset_id})

    def failed(self, error: Exception) -> None:
        """The local work of one release failed; what cannot be written is logged."""
        with self._noting:
            known = failed_work_of_last_run(self.folder)
            before = known.get(self.dataset_id)
            count = before.releases if before is not None and before.session == self.session else 0
            when = self.now().isoformat(timespec="seconds")
            now = FailedWork(self.session, count + 1, type(error).__name__, when)
            self._keep({**known, self.dataset_id: now})

    def _keep(self, told: Mapping[str, FailedWork]) -> None:
        _keep(self.folder / _FAILED_FILE, {name: work.as_dict() for name, work in told.items()})


def failed_work_of_last_run(folder: Path) -> Mapping[str, FailedWork]:
    """By data set; only those in whose last run local work failed."""
    try:
        return {
            name: FailedWork(str(told["session"]), int(told["releases"]), str(told["why"]), str(told["when"]))
            for name, told in _kept(folder / _FAILED_FILE).items()
        }
    except (KeyError, TypeError, ValueError):
        return {}


def keep_unusable(folder: Path, dataset_id: str, unusable: Unusable) -> None:
    """Note which stored rows the last run of one data set could not use; what cannot be written is logged."""
    told = {**unusable_of_last_run(folder), dataset_id: unusable.sentence}
    _keep(folder / _UNUSABLE_FILE, {name: sentence for name, sentence in told.items() if sentence})


def unusable_of_last_run(folder: Path) -> Mapping[str, str]:
    """By data set, a sentence; only those with unusable rows."""
    return {name: str(sentence) for name, sentence in _kept(folder / _UNUSABLE_FILE).items()}


def _keep(file: Path, told: Mapping[str, object]) -> None:
    try:
        write_whole(file, json.dumps(told, allow_nan=False).encode(), mode=0o600)
    except OSError as error:
        _log.warning("%s cannot be kept: %s", file.name, error.strerror)


def _kept(file: Path) -> Mapping[str, Any]:
    try:
        told = read_json(read_small(file), what=file.name)
    except (OSError, ConfigError):
        return {}
    return told if isinstance(told, dict) else {}
