"""Everything a run needs to go on after a crash: the run folder and the checkpoint in it.

config.toml roster.toml metrics.jsonl events.jsonl checkpoint.safetensors model.safetensors summary.json report.html;
run.lock ledger.db ledger.db.count certificate.json; deployed: attestations.jsonl revoked.jsonl coordinator.done
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedlearn.bounded import MOST_MODEL_BYTES, read_bytes, read_json, read_safetensors, read_whole
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.host.durable import append_whole, locked, write_whole
from fedlearn.policy.roster import Roster
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import Lanes

__all__ = ["DONE_FILE", "LOCK_FILE", "REVOKED_FILE", "ROSTER_FILE", "Progress", "RunFolder", "fresh_folder", "load_run"]

ROSTER_FILE = "roster.toml"
REVOKED_FILE = "revoked.jsonl"
LOCK_FILE = "run.lock"
DONE_FILE = "coordinator.done"  # a deployed run's coordinator came to its end

_CHECKPOINT = "checkpoint.safetensors"
_MOST_CHECKPOINT = 8 * MOST_MODEL_BYTES  # weights, two states of an optimizer and a sum, of 64 bits
_MOST_LINES = 1 << 26


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. `attempts_asked` counts the attempts that asked for a vector: those are spent.

    `asked`, `survivors` and `transcript` are those of the attempt whose noised sum the checkpoint holds; None where it
    holds none.
    """

    session: str
    started: str
    round: int = 0
    attempt: int = 0
    spare_rounds_left: int = 0
    attempts_asked: int = 0
    asking: bool = False
    asked: int | None = None
    survivors: int | None = None
    transcript: str | None = None

    def next_attempt(self) -> "Progress":
        """The same round once more; a pair (round, attempt) is never used twice."""
        return replace(self, attempt=self.attempt + 1, asking=False, asked=None, survivors=None, transcript=None)

    def next_round(self) -> "Progress":
        """The round succeeded."""
        return replace(self, round=self.round + 1, attempt=0, asking=False, asked=None, survivors=None, transcript=None)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's files. Every write is whole or absent: a temporary name, fsync, rename; lines are fsynced.

    `lock` is the descriptor of the lock while this process holds it, for processes that work on the run with it.
    """

    path: Path
    lock: int | None = None

    @contextmanager
    def locked(self) -> Iterator["RunFolder"]:
        """The same folder, held by this process alone.

        Raises:
            ConfigError: another process works on the run.
        """
        with ExitStack() as held:
            try:
                lock = held.enter_context(locked(self.file(LOCK_FILE)))
            except BlockingIOError:
                raise ConfigError(
                    f"{self.path}: another process works on this run; wait until it has ended, or end it first"
                ) from None
            yield replace(self, lock=lock)

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    def write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole, durably."""
        write_whole(self.path / name, content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file as a whole, durably."""
        self.write(name, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Add one JSON line, durably."""
        append_whole(self.path / name, (json.dumps(line, sort_keys=True, allow_nan=False) + "\n").encode())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The complete JSON lines of a file; a line that a crash left unfinished is not one.

        Raises:
            ConfigError: the file is damaged, or beyond the bounds of `fedlearn.bounded`.
        """
        if not (self.path / name).is_file():
            return []
        path = self.path / name
        lines = read_bytes(path, most=_MOST_LINES).splitlines(keepends=True)
        return [read_json(line, what=f"{path}: a line") for line in lines if line.endswith(b"\n")]

    def keep_lines(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop whole lines that are not to be kept, and what a crash left of an unfinished one."""
        kept = [line for line in self.lines(name) if keep(line)]
        self.write(name, "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in kept).encode())

    def roster(self) -> Roster:
        """The roster of a masked run.

        Raises:
            ConfigError: it is missing or damaged.
        """
        path = self.file(ROSTER_FILE)
        try:
            return Roster.from_bytes(read_whole(path))
        except OSError as error:
            raise ConfigError(f"{path}: the run's roster cannot be read: {error.strerror}") from None

    def revoked(self) -> set[bytes]:
        """The client ids that the operator took out since the run began."""
        return {bytes.fromhex(line["client_id"]) for line in self.lines(REVOKED_FILE)}

    def save_checkpoint(
        self,
        progress: Progress,
        weights: Vector,
        optimizer: Mapping[str, NDArray[np.float64]],
        noised: Lanes | None = None,
    ) -> None:
        """Store where the run stands, its weights (d,) float64 and the state of the server's optimizer.

        `noised` is a sum (d,) that the server drew noise for: it is used as it is after a crash too, never drawn again.
        """
        tensors: dict[str, Any] = {"weights": weights}
        tensors |= {f"optimizer/{name}": values for name, values in optimizer.items()}
        tensors |= {} if noised is None else {"noised": noised}
        self.write(_CHECKPOINT, save(tensors, {"progress": json.dumps(asdict(progress), allow_nan=False)}))

    def load_checkpoint(self) -> tuple[Progress, Vector, dict[str, NDArray[np.float64]]] | None:
        """What `save_checkpoint` stored last, or None before the first.

        Raises:
            ConfigError: the file is damaged.
        """
        stored = self._read_checkpoint()
        if stored is None:
            return None
        progress, tensors = stored
        optimizer = {name: values for name, values in tensors.items() if name.startswith("optimizer/")}
        return progress, tensors["weights"], {name.partition("/")[2]: values for name, values in optimizer.items()}

    def noised_sum(self) -> Lanes | None:
        """The noised sum that the checkpoint holds, (d,); None where it holds none.

        Raises:
            ConfigError: the file is damaged.
        """
        stored = self._read_checkpoint()
        return stored[1].get("noised") if stored else None

    def session(self) -> str | None:
        """By what the data holders know this run; None before its first checkpoint, or where that is damaged."""
        try:
            stored = self._read_checkpoint()
        except ConfigError:
            return None
        return stored[0].session if stored else None

    def _read_checkpoint(self) -> tuple[Progress, dict[str, NDArray[Any]]] | None:
        path = self.file(_CHECKPOINT)
        if not path.is_file():
            return None
        try:
            tensors, about = read_safetensors(read_bytes(path, most=_MOST_CHECKPOINT), what="it")
            progress = Progress(**read_json(about["progress"].encode(), what="its progress"))
            _ = tensors["weights"]
        except (ConfigError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged and cannot be resumed: {error}") from None
        return progress, tensors


def fresh_folder(parent: Path, config: RunConfig) -> Path:
    """A path for a run that begins now, `parent`/<time>-<scenario>; nothing is there yet."""
    name = f"{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-{config.source.stem if config.source else 'run'}"
    path, attempt = parent / name, 1
    while path.exists():
        attempt += 1
        path = parent / f"{name}-{attempt}"
    return path


def load_run(path: Path) -> RunConfig:
    """The configuration in a run folder; a user's own model is still searched where the run's file lay."""
    config = RunConfig.load(path)
    origin = path.parent / "origin.txt"
    return config.found_in(Path(os.fsdecode(origin.read_bytes()))) if origin.is_file() else config
