"""`fedlearn client start`: what the holder accepts is asked once, then the parts run, each under its own user.

Under one user the coordinator's bundle could open the records and the key, whatever the agent's socket forbids. So as
root the parts run as `fedlearn-agent` and `fedlearn-node`, each with `--only` (`two_users.py`), as systemd units start
them too; everybody else has to say --same-user.
"""

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import tomli_w

from fedlearn.deployment import background
from fedlearn.deployment.parts import Part
from fedlearn.deployment.supervisor import STATE_FILE, Supervisor
from fedlearn.deployment.two_users import run_as_two_users
from fedlearn.deployment.users import GROUP, Users
from fedlearn.enrolment.invitation import is_address
from fedlearn.enrolment.joining import Joined
from fedlearn.errors import ConfigError, RefusedError, RunFailedError
from fedlearn.flower.node_app import SOCKET_KEY
from fedlearn.flower.programs import flower_environment, free_port
from fedlearn.holder.socket import check_socket_path, is_answering
from fedlearn.host.durable import read_small, write_whole
from fedlearn.host.logs import Tell
from fedlearn.policy.acceptance import Acceptance
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.toml import parse_toml

__all__ = [
    "ADDRESS_KEY",
    "NODE_FILE",
    "NODE_FOLDER",
    "Start",
    "holder_process",
    "keep_accepted",
    "known_to_node",
    "run",
    "start_in_background",
    "stop",
]

NODE_FOLDER: Final = "node"  # in a home of two users: the node's own files
NODE_FILE: Final = "node.toml"  # the node's configuration: the coordinator's code may read it
ADDRESS_KEY: Final = "superlink"

_STOP_SECONDS: Final = 40.0
_START_SECONDS: Final = 120.0

Only = Literal["agent", "node"]


@dataclass(frozen=True, slots=True)
class Start:
    """How one home is started."""

    folder: Path
    same_user: bool
    only: Only | None = None

    @property
    def policy_path(self) -> Path:
        """The holder's policy."""
        return self.folder / "client.toml"

    @property
    def home(self) -> Path:
        """The party's home."""
        return self.folder.parent

    @property
    def node_folder(self) -> Path:
        """The node's files: with two users not in the agent's folder, which the node must not enter."""
        apart = self.home / NODE_FOLDER
        return apart if self.only == "node" and apart.exists() else self.folder

    @property
    def lock_folder(self) -> Path:
        """Where it is noted that this runs."""
        return self.home if self.two_users else self.node_folder if self.only == "node" else self.folder

    @property
    def two_users(self) -> bool:
        """Whether each part runs as a user of its own."""
        return os.geteuid() == 0 and not self.same_user and self.only is None

    def check_not_running(self) -> None:
        """See that nothing is asked of a holder whose agent runs.

        Raises:
            ConfigError: it does.
        """
        if (process := holder_process(self.folder)) is not None:
            raise ConfigError(_started_already(self.folder, process))

    def check_socket(self) -> None:
        """See that the agent can listen where its policy says.

        Raises:
            ConfigError: the path is too long, or the policy is none.
        """
        check_socket_path(HolderPolicy.read(self.policy_path).socket_path)

    def check_users(self) -> None:
        """See that the bundle will not run as the user who owns the records.

        Raises:
            ConfigError: it would, or the users are missing, or the home is not theirs.
        """
        if sys.platform != "linux":
            raise ConfigError("a client runs on Linux alone: elsewhere the agent cannot know its peer's user")
        if self.only is not None and os.geteuid() == 0 and not self.same_user:
            raise ConfigError(
                f"--only {self.only} as root; run it as fedlearn-{self.only}, as its unit does, or leave --only out"
            )
        if self.same_user or self.only is not None:
            return
        if os.geteuid() != 0:
            raise ConfigError(
                "agent and node would run as one user, so that the coordinator's code could read your records and your "
                "key; start as root, with the users of fedlearn client join --system, or accept it with --same-user"
            )
        agent = Users.find().agent
        if not (self.home / NODE_FOLDER).is_dir() or self.folder.stat().st_uid != agent.pw_uid:
            raise ConfigError(
                f"{self.home}: not laid out for two users; join with --system in a new home and move ledger.db and "
                "ledger.db.count there, or start with --same-user"
            )


def keep_accepted(start: Start, acceptance: Acceptance) -> None:
    """Write down what the holder accepted; an agent that runs goes on by what was accepted before, and so nothing is.

    Raises:
        ConfigError: this home runs already.
    """
    with background.only_one(_lock(start.folder), otherwise=partial(_started_already, start.folder)):
        acceptance.keep(start.folder)


def run(start: Start, tell: Tell) -> None:
    """Supervise the parts until SIGTERM or SIGINT.

    Raises:
        ConfigError: a file is missing or wrong, or this home runs already.
        RefusedError: the agent refuses to start.
        RunFailedError: it does not answer.
    """
    start.check_users()
    folder = start.lock_folder
    with background.only_one(_lock(folder), otherwise=partial(_started_already, folder)):
        if start.two_users:
            run_as_two_users(start.home, tell)
        else:
            _supervise(start, tell)


def _supervise(start: Start, tell: Tell) -> None:
    ended = background.until_told()
    log = start.lock_folder / "log"
    log.mkdir(mode=0o700, exist_ok=True)
    accepted = None if start.only == "node" else Acceptance.kept(start.folder)
    if accepted is not None and start.only is None:
        _prepare_node(start, accepted)
    if accepted is not None and start.only == "agent":
        address, agent_socket = "", accepted.holder_policy(start.policy_path).socket_path
    else:
        address, agent_socket = known_to_node(start.node_folder)
    Supervisor(
        start.lock_folder,
        agent=None if start.only == "node" else _agent_part(start, log),
        node=None if start.only == "agent" else _node_part(start, address, log),
        agent_answers=lambda: is_answering(agent_socket),
        policy_sha256=accepted.policy_sha256 if accepted else None,
        address=address,
        tell=tell,
    ).run(ended)
    tell("stopped")


def start_in_background(start: Start) -> int:
    """The same in a process of its own; gives its id once the agent answers.

    Raises:
        ConfigError, RefusedError, RunFailedError: as `run`, in the sentence of that process.
    """
    start.check_users()
    arguments = ["client", "start", "--home", str(start.home)]
    arguments += ["--same-user"] if start.same_user else []
    arguments += ["--only", start.only] if start.only else []
    log = start.lock_folder / "log" / "start.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)

    states = [start.folder, start.home / NODE_FOLDER] if start.two_users else [start.lock_folder]

    def is_up(process: int) -> bool:
        started = all((folder / STATE_FILE).exists() for folder in states)
        return holder_process(start.lock_folder) == process and started

    try:
        return background.start_in_background(arguments, log, is_up=is_up, seconds=_START_SECONDS, party="client")
    except background.EndedEarlyError as error:
        raise {2: ConfigError, 3: RefusedError}.get(error.code, RunFailedError)(str(error)) from None


def stop(folder: Path) -> None:
    """End what runs for a home, and wait for it.

    Raises:
        ConfigError: nothing does.
        RunFailedError: it does not end.
    """
    places = [place for place in (folder.parent, folder, folder.parent / NODE_FOLDER) if holder_process(place)]
    for place in places or [folder]:
        if holder_process(place) or not places:
            otherwise = f"{folder}: not started; there is nothing to stop"
            background.stop(_lock(place), seconds=_STOP_SECONDS, otherwise=otherwise)


def holder_process(folder: Path) -> int | None:
    """The process that runs for a home, or None."""
    return background.process_of(_lock(folder))


def _started_already(folder: Path, process: int | None) -> str:
    return f"{folder}: started already, by process {process}"


def _lock(folder: Path) -> Path:
    return folder / "start.lock"


def _agent_part(start: Start, log: Path) -> Part:
    command = [sys.executable, "-P", "-m", "fedlearn.holder.deployed", str(start.policy_path), "--accepted"]
    if start.same_user:
        command.append("--same-user")
    else:
        command += ["--group", GROUP]
    return Part("agent", command, dict(os.environ), log / "agent.jsonl")


def known_to_node(folder: Path) -> tuple[str, Path]:
    """The coordinator's address and the agent's socket, as a node's folder has them.

    Raises:
        ConfigError: it has not.
    """
    path = folder / NODE_FILE
    try:
        values = parse_toml(read_small(path), place=path)
        address, agent_socket = values[ADDRESS_KEY], Path(values[SOCKET_KEY])
        if not is_address(address):
            raise ConfigError(address)
        return address, agent_socket
    except (OSError, ConfigError, KeyError, TypeError):
        raise ConfigError(
            f"{path}: cannot be read; fedlearn client join --system writes it for the user of the node"
        ) from None


def _node_part(start: Start, address: str, log: Path) -> Part:
    place = start.node_folder
    command = [sys.executable, "-P", "-m", "fedlearn.flower.supernode", "--superlink", address]
    command += ["--root-certificates", str(place / "ca.crt"), "--auth-supernode-private-key", str(place / "node.key")]
    command += ["--host", "127.0.0.1", "--port", str(free_port()), "--node-config", str(place / NODE_FILE)]
    environment = flower_environment(place / "flwr") | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25"}
    return Part("node", command, environment, log / "node.jsonl")


def _prepare_node(start: Start, accepted: Acceptance) -> None:
    """What the node of the same user needs: where the coordinator and the agent's socket are."""
    policy = accepted.holder_policy(start.policy_path)
    (start.folder / "flwr").mkdir(mode=0o700, exist_ok=True)
    known = {ADDRESS_KEY: Joined.load(start.home).address, SOCKET_KEY: str(policy.socket_path)}
    write_whole(start.folder / NODE_FILE, tomli_w.dumps(known).encode(), mode=0o600)
