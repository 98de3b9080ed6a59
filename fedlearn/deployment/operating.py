"""What an operator asks of a coordinator beside serving: begin a run, look at runs and members, take a member out."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedlearn.checkpoint import REVOKED_FILE, ROSTER_FILE, RunFolder, fresh_folder, load_run
from fedlearn.config import RunConfig
from fedlearn.crypto.certificates import node_key_bytes
from fedlearn.deployment.federation import Federation
from fedlearn.deployment.runs import ENDED, BookedRun, Runs
from fedlearn.deployment.server_home import ServerHome
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.flower.control import Control
from fedlearn.flower.public_data import PublicData
from fedlearn.flower.strategies import check_options
from fedlearn.privacy.calibration import Plan
from fedlearn.roster import Roster
from fedlearn.training.device import pick_device

__all__ = ["Progressed", "begin_run", "check_room", "member_states", "progress_of", "revoke"]

_MOST_MESSAGE_BYTES: Final = 200 * 10**6
_SPARE_DISK_BYTES: Final = 10**9
_SPARE_MEMORY_BYTES: Final = 300 * 10**6


def begin_run(home: ServerHome, source: str | Path, overrides: list[str]) -> tuple[str, Plan]:
    """Make the folder of a run over the roster that was closed last, and book it; gives its id and its plan.

    Raises:
        ConfigError: the configuration cannot work, the roster is open, or this machine has no room for it.
    """
    config = RunConfig.load(source, overrides)
    if not config.secure_aggregation.masking:
        raise ConfigError(
            f"{source}: secure_aggregation.masking is false, which a simulation alone may be; expected true"
        )
    federation, runs = Federation(home.database_path), Runs(home.database_path)
    try:
        roster = federation.roster
        if roster is None:
            raise ConfigError("the roster is open; close it first: fedlearn server roster --close")
        data = PublicData.load(config, population_size=len(roster.members))
        plan = data.plan
        check_options(config.training.strategy, config.training.strategy_options)
        pick_device(config.runtime.device)
        check_room(plan, disk=shutil.disk_usage(home.folder).free, memory=_memory())
        folder = _folder(home, config, roster)
        standing = {member.applicant.client_id for member in federation.in_roster() if member.applicant}
        for entry in roster.members:
            if entry.client_id not in standing:
                _note_revoked(folder, entry.client_id, entry.name)
        runs.add(folder.path.name)
        return folder.path.name, plan
    finally:
        federation.close()
        runs.close()


def check_room(plan: Plan, *, disk: int, memory: int) -> None:
    """Refuse a run that would fill this machine (reliability.md, F13 and F16); sizes in bytes.

    Raises:
        ConfigError: with the figures.
    """
    message = plan.bytes_per_round
    if message > _MOST_MESSAGE_BYTES:
        raise ConfigError(
            f"a client's message would have {message / 1e6:.0f} MB; expected at most "
            f"{_MOST_MESSAGE_BYTES / 1e6:.0f} MB: take a smaller model"
        )
    needed = 3 * (1 + plan.planned_cohort) * message + _SPARE_DISK_BYTES
    if disk < needed:
        raise ConfigError(f"{disk / 1e9:.1f} GB of disk are free; the run needs {needed / 1e9:.1f} GB: make room first")
    needed = 6 * message + _SPARE_MEMORY_BYTES
    if memory < needed:
        raise ConfigError(f"{memory / 1e9:.1f} GB of memory are free; the run needs {needed / 1e9:.1f} GB")


def _memory() -> int:
    """Bytes that could be had without swapping; very many where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 1 << 62
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 1 << 62)


def _folder(home: ServerHome, config: RunConfig, roster: Roster) -> RunFolder:
    path = fresh_folder(home.folder / "runs", config)
    try:
        path.mkdir(mode=0o700)
        folder = RunFolder(path)
        folder.write(ROSTER_FILE, roster.content)
        if config.source:
            folder.write("origin.txt", str(config.source).encode())
        folder.write("config.toml", config.to_toml().encode())
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: cannot be written: {error.strerror}") from None
    return folder


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a run is. Scores are None where there is no public test data, or no round yet."""

    run: BookedRun
    folder: Path
    round: int
    rounds: int
    accuracy: float | None
    epsilon: float | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "id": self.run.id,
            "state": self.run.state,
            "reason": self.run.reason,
            "round": self.round,
            "rounds": self.rounds,
            "accuracy": self.accuracy,
            "epsilon": self.epsilon,
            "folder": str(self.folder),
        }


def progress_of(home: ServerHome, run: BookedRun) -> Progressed:
    """What a run's folder says of it.

    Raises:
        ConfigError: the folder is gone or damaged.
    """
    folder = RunFolder(home.folder / "runs" / run.id)
    last = (folder.lines("metrics.jsonl") or [{}])[-1]
    rounds = load_run(folder.file("config.toml")).run.rounds
    return Progressed(run, folder.path, last.get("round", 0), rounds, last.get("accuracy"), last.get("epsilon"))


def member_states(home: ServerHome, federation: Federation) -> dict[str, str]:
    """Each member's name with what is known of it: invited, expired, joined, online, offline or revoked."""
    online: dict[bytes, bool] = {}
    try:
        control = Control(home.local_address, home.authority.certificate.pem)
        online = {node.key: node.is_online for node in control.nodes()}
        control.close()
    except RunFailedError:
        pass
    states = {}
    for member in federation.members():
        if member.revoked:
            states[member.name] = "revoked"
        elif member.applicant is None:
            states[member.name] = "invited" if federation.is_open(member) else "invited, and its code is expired"
        else:
            there = online.get(node_key_bytes(member.applicant.node_key))
            states[member.name] = "joined" if there is None else "online" if there else "offline"
    return states


def revoke(home: ServerHome, name: str) -> bool:
    """Take a member out: of every cohort at once, of Flower as soon as the server is up; whether it had joined.

    Raises:
        ConfigError: there is no such member.
    """
    federation, runs = Federation(home.database_path), Runs(home.database_path)
    try:
        member = federation.revoke(name)
        if member.applicant is None:
            return False
        for run in runs.all():
            if run.state not in ENDED:
                _note_revoked(RunFolder(home.folder / "runs" / run.id), member.applicant.client_id, name)
        return True
    finally:
        federation.close()
        runs.close()


def _note_revoked(folder: RunFolder, client_id: bytes, name: str) -> None:
    folder.append(REVOKED_FILE, {"client_id": client_id.hex(), "name": name})
