"""What a holder wants to know of its home: what runs, what it accepts, what was spent and what is left."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.bounded import read_json
from fedlearn.deployment.starting import NODE_FOLDER, holder_process
from fedlearn.deployment.supervisor import POLICY_KEY, STATE_FILE
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.holder.deployed import MODELS_FOLDER, PAUSED_FILE
from fedlearn.holder.last_run import FailedWork, failed_work_of_last_run, unusable_of_last_run
from fedlearn.host.durable import read_small
from fedlearn.ledger.statement import Account, read_statement
from fedlearn.policy.holder_policy import HolderPolicy

__all__ = ["HolderStatus", "final_model", "leave", "pause", "policy_differs", "read_status", "running_parts"]

_SHORTEST_SESSION: Final = 8  # digits: what an operator is shown
# What makes a home a member: without them it is in no federation. The ledger stays for as long as the records live.
_MEMBERSHIP = ("node.key", "server.toml", "ca.crt", "roster.toml", "confirmed.toml", "accepted.toml", "node.toml")


@dataclass(frozen=True, slots=True)
class HolderStatus:
    """`process` is that of `client start`, None where nothing runs; `problem` is what is wrong with a part.

    `policy_differs`: the policy's file is not what the agent runs, for it was changed since the agent started.
    """

    process: int | None
    paused: bool
    parts: dict[str, dict[str, object]]
    policy_problem: str | None
    policy_differs: bool
    accounts: tuple[Account, ...]
    unusable_rows: Mapping[str, str]  # of the last run of each data set, a sentence
    failed_work: Mapping[str, FailedWork]  # of the last run of each data set, where any failed

    def as_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "running": self.process is not None,
            "process": self.process,
            "paused": self.paused,
            "parts": self.parts,
            "policy_problem": self.policy_problem,
            "policy_differs": self.policy_differs,
            "datasets": [account.as_dict() for account in self.accounts],
            "unusable_rows": dict(self.unusable_rows),
            "failed_work": {name: work.as_dict() for name, work in self.failed_work.items()},
        }


def read_status(folder: Path) -> HolderStatus:
    """The status of the home whose `client/` is `folder`; nothing is changed.

    Raises:
        ConfigError: there is no such folder.
        RefusedError: the ledger was changed.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; join first: fedlearn client join CODE")
    try:
        HolderPolicy.load(folder / "client.toml")
        problem = None
    except FedlearnError as error:
        problem = str(error)
    ledger = folder / "ledger.db"
    return HolderStatus(
        process=holder_process(folder),
        paused=(folder / PAUSED_FILE).exists(),
        parts=running_parts(folder),
        policy_problem=problem,
        policy_differs=policy_differs(folder),
        accounts=tuple(read_statement(ledger).accounts) if ledger.exists() else (),
        unusable_rows=unusable_of_last_run(folder),
        failed_work=failed_work_of_last_run(folder),
    )


def policy_differs(folder: Path) -> bool:
    """Whether an agent runs for the home whose `client/` is `folder`, and by another policy than the file has now."""
    try:
        runs = read_json(read_small(folder / STATE_FILE), what=STATE_FILE)[POLICY_KEY]
        here = hashlib.sha256((folder / "client.toml").read_bytes()).hexdigest()
    except (OSError, ConfigError, LookupError, TypeError):
        return False
    return runs is not None and runs != here


def pause(folder: Path, *, end: bool) -> None:
    """Let no further attempt begin, until `end`; what has begun goes on.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; join first: fedlearn client join CODE")
    if end:
        (folder / PAUSED_FILE).unlink(missing_ok=True)
    else:
        (folder / PAUSED_FILE).touch(mode=0o600)


def leave(folder: Path) -> None:
    """Leave the federation: the node's key and the roster go; records, policy, ledger and identity stay.

    Raises:
        ConfigError: the client runs.
    """
    if (process := holder_process(folder)) is not None:
        raise ConfigError(f"{folder}: process {process} runs; stop it first: fedlearn client stop")
    for name in _MEMBERSHIP:
        for place in (folder, folder.parent / NODE_FOLDER):
            (place / name).unlink(missing_ok=True)


def final_model(folder: Path, session: str | None) -> Path:
    """The file of the final model of a session, by default the latest; the first 8 digits of a session are enough.

    Raises:
        ConfigError: no run has ended here, or the session is none of those kept.
    """
    kept = sorted((folder / MODELS_FOLDER).glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    if not kept:
        raise ConfigError(f"{folder / MODELS_FOLDER}: no final model; a coordinator shows it when a run has ended")
    if session is None:
        return kept[-1]
    for path in kept:
        if len(session) >= _SHORTEST_SESSION and path.stem.startswith(session):
            return path
    raise ConfigError(f"--session {session}: not kept here; expected one of {', '.join(path.stem for path in kept)}")


def running_parts(folder: Path) -> dict[str, dict[str, object]]:
    """What runs for the home whose `client/` is `folder`, by name: `alive`, `up`, `seconds`, `problem`.

    A part that is alive is up when it does what it is for; a node is when the coordinator let it in.

    A node with a folder of its own may write anything there: of that, its own part alone is taken.
    """
    apart = _told_in(folder.parent / NODE_FOLDER)
    return _told_in(folder) | {name: part for name, part in apart.items() if name == "node"}


def _told_in(folder: Path) -> dict[str, dict[str, object]]:
    """What a supervisor wrote down; nothing where it is not of that form."""
    try:
        parts = read_json(read_small(folder / STATE_FILE), what=STATE_FILE)["parts"]
        return {str(name): dict(part) for name, part in parts.items() if _is_part(part)}
    except (OSError, ConfigError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def _is_part(part: Mapping[str, object]) -> bool:
    kinds = {"alive": bool, "up": bool, "seconds": int, "problem": str | None}
    return set(part) == set(kinds) and all(isinstance(part[name], kind) for name, kind in kinds.items())
