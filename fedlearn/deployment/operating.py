"""What an operator asks of a coordinator beside serving: begin a run, look at runs and members, take a member out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.public_data import PublicData
from fedlearn.crypto.certificates import node_key_bytes
from fedlearn.deployment.runs import ENDED, BookedRun, Runs
from fedlearn.deployment.superlink_process import control_of
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.flower.strategies import check_options
from fedlearn.host.memory_limits import Room, check_coordinator_room
from fedlearn.policy.roster import Roster
from fedlearn.privacy.calibration import Plan
from fedlearn.run.checkpoint import REVOKED_FILE, ROSTER_FILE, RunFolder, fresh_folder, load_run
from fedlearn.training.device import pick_device

__all__ = ["Progressed", "begin_run", "check_run", "member_states", "progress_of", "revoke"]


def begin_run(home: ServerHome, source: str | Path, overrides: list[str]) -> tuple[str, Plan]:
    """Make the folder of a run over the roster that was closed last, and book it; gives its id and its plan.

    Raises:
        ConfigError: the configuration cannot work, the roster is open, or this machine has no room for it.
    """
    config = RunConfig.load(source, overrides)
    _check_masking(config, source)
    federation, runs = Federation(home.database_path), Runs(home.database_path)
    try:
        roster = federation.roster
        if roster is None:
            raise ConfigError("the roster is open; close it first: fedlearn server roster --close")
        plan = _check_plan(home, config, population_size=len(roster.members))
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


def check_run(home: ServerHome, source: str | Path, *, population_size: int) -> Plan:
    """The plan of a run over so many clients that this machine could begin; nothing is written.

    Raises:
        ConfigError: the configuration cannot work, or this machine has no room for it.
    """
    config = RunConfig.load(source)
    _check_masking(config, source)
    return _check_plan(home, config, population_size=population_size)


def _check_masking(config: RunConfig, source: str | Path) -> None:
    if not config.secure_aggregation.masking:
        raise ConfigError(
            f"{source}: secure_aggregation.masking is false, which a simulation alone may be; expected true"
        )


def _check_plan(home: ServerHome, config: RunConfig, *, population_size: int) -> Plan:
    plan = PublicData.load(config, population_size=population_size).plan
    check_options(config.training.strategy, config.training.strategy_options)
    pick_device(config.runtime.device)
    check_coordinator_room(Room.at(home.folder), message=plan.bytes_per_round, cohort=plan.planned_cohort)
    return plan


def _folder(home: ServerHome, config: RunConfig, roster: Roster) -> RunFolder:
    path = fresh_folder(home.folder / "runs", config)
    try:
        path.mkdir(mode=0o700)
        folder = RunFolder(path)
        folder.write(ROSTER_FILE, roster.content)
        if config.source:
            folder.write("origin.txt", os.fsencode(config.source))
        folder.write("config.toml", config.to_toml().encode())
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: cannot be written: {error.strerror}") from None
    return folder


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a run is. Scores are None where there is no public test data, or no round yet.

    `session` is the run's name at the data holders: in their ledgers, logs and final models. None before it began.
    """

    run: BookedRun
    folder: Path
    round: int
    rounds: int
    accuracy: float | None
    epsilon: float | None
    session: str | None

    @property
    def name(self) -> str:
        """The run's id, and the first 8 digits of what the data holders call it."""
        return f"{self.run.id} (session {self.session[:8]})" if self.session else self.run.id

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "id": self.run.id,
            "session": self.session,
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
    scores = (last.get("accuracy"), last.get("epsilon"))
    return Progressed(run, folder.path, last.get("round", 0), rounds, *scores, folder.session())


def member_states(home: ServerHome, federation: Federation) -> dict[str, str]:
    """Each member's name with what is known of it: invited, expired, joined, online, offline or revoked."""
    online: dict[bytes, bool] = {}
    try:
        control = control_of(home)
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
