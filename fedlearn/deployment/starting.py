"""`fedlearn client start`: what the holder accepts is asked once, then the parts run, each under its own user.

Under one user the coordinator's bundle could open the records and the key, whatever the agent's socket forbids. So as
root the parts drop to `fedlearn-agent` and `fedlearn-node`; everybody else has to say --same-user.
"""

import fcntl
import grp
import hashlib
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import tomli_w

from fedlearn.agent.socket import is_answering
from fedlearn.deployment.joining import Joined
from fedlearn.deployment.parts import Part
from fedlearn.deployment.supervisor import STATE_FILE, Supervisor
from fedlearn.durable import write_whole
from fedlearn.errors import ConfigError, RefusedError, RunFailedError
from fedlearn.flower.node_app import SOCKET_KEY
from fedlearn.flower.programs import flower_environment, free_port
from fedlearn.holder_policy import HolderPolicy

__all__ = ["Acceptance", "Start", "holder_process", "run", "start_in_background", "stop"]

AGENT_USER: Final = "fedlearn-agent"
NODE_USER: Final = "fedlearn-node"
GROUP: Final = "fedlearn"

_ACCEPTED_FILE: Final = "accepted.toml"
_NODE_FILE: Final = "node.toml"  # the node's configuration: the coordinator's code may read it
_ADDRESS_KEY: Final = "superlink"
_LOCK_FILE: Final = "start.lock"
_STOP_SECONDS: Final = 40.0
_START_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.2

Only = Literal["agent", "node"]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a holder accepts when it starts: its policy and its roster, byte for byte."""

    policy_sha256: str
    roster_sha256: str

    @classmethod
    def of(cls, policy: HolderPolicy) -> "Acceptance":
        """Of a policy and the roster that it pins."""
        return cls(hashlib.sha256(policy.path.read_bytes()).hexdigest(), policy.roster.sha256.hex())

    def is_known(self, folder: Path) -> bool:
        """Whether the holder accepted these very two before."""
        try:
            known = tomllib.loads((folder / _ACCEPTED_FILE).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            return False
        return known == {"policy_sha256": self.policy_sha256, "roster_sha256": self.roster_sha256}

    def check_told(self, policy_sha256: str | None, roster_sha256: str | None) -> bool:
        """Whether both hashes were told, for a start without a question.

        Raises:
            ConfigError: only one of them was.
            RefusedError: one is not that of the file.
        """
        if policy_sha256 is None and roster_sha256 is None:
            return False
        if policy_sha256 is None or roster_sha256 is None:
            raise ConfigError("--accept-policy and --accept-roster go together; each has the hash of its file")
        for what, told, here in (
            ("policy", policy_sha256, self.policy_sha256),
            ("roster", roster_sha256, self.roster_sha256),
        ):
            if told.lower() != here:
                raise RefusedError(f"the {what} here has SHA-256 {here}, not the {told} that is accepted; nothing runs")
        return True

    def keep(self, folder: Path) -> None:
        """Write down that it was accepted."""
        values = {"policy_sha256": self.policy_sha256, "roster_sha256": self.roster_sha256}
        write_whole(folder / _ACCEPTED_FILE, tomli_w.dumps(values).encode(), mode=0o600)


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
    def node_folder(self) -> Path:
        """The node's files: with two users not in the agent's folder, which the node must not enter."""
        apart = self.folder.parent / "node"
        return apart if self.two_users or (self.only == "node" and apart.exists()) else self.folder

    @property
    def lock_folder(self) -> Path:
        """Where it is noted that this runs."""
        return self.node_folder if self.only == "node" else self.folder

    @property
    def two_users(self) -> bool:
        """Whether the parts drop to users of their own."""
        return os.geteuid() == 0 and not self.same_user and self.only is None

    def check_users(self) -> None:
        """See that the bundle will not run as the user who owns the records.

        Raises:
            ConfigError: it would, or the users are missing.
        """
        if sys.platform != "linux":
            raise ConfigError("a client runs on Linux alone: elsewhere the agent cannot know its peer's user")
        if self.same_user or self.only is not None:
            return
        if os.geteuid() != 0:
            raise ConfigError(
                "agent and node would run as one user, so that the coordinator's code could read your records and your "
                "key; start as root, with the users of fedlearn client join --system, or accept it with --same-user"
            )
        try:
            pwd.getpwnam(AGENT_USER), pwd.getpwnam(NODE_USER), grp.getgrnam(GROUP)
        except KeyError as error:
            raise ConfigError(
                f"{error.args[0]}; fedlearn client join --system makes the users, or start with --same-user"
            ) from None


def run(start: Start, tell: Callable[[str], None]) -> None:
    """Supervise the parts until SIGTERM or SIGINT.

    Raises:
        ConfigError: a file is missing or wrong, or this home runs already.
        RefusedError: the agent refuses to start.
        RunFailedError: it does not answer.
    """
    start.check_users()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _locked(start.lock_folder):
        log = start.lock_folder / "log"
        log.mkdir(mode=0o700, exist_ok=True)
        if start.only != "node":
            _prepare_node(start, HolderPolicy.load(start.policy_path))
        address, agent_socket = _known_to_node(start.node_folder)
        Supervisor(
            start.lock_folder,
            agent=None if start.only == "node" else _agent_part(start, log),
            node=None if start.only == "agent" else _node_part(start, address, log),
            agent_answers=lambda: is_answering(agent_socket),
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
    command = [sys.executable, "-m", "fedlearn.cli", "client", "start", "--home", str(start.folder.parent)]
    command += ["--same-user"] if start.same_user else []
    command += ["--only", start.only] if start.only else []
    path = start.lock_folder / "log" / "start.log"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with path.open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(  # noqa: S603 (our own command)
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = path.read_bytes()[began:].decode("utf-8", "replace").splitlines()
            sentence = said[-1].removeprefix("fedlearn: ") if said else "the client did not start"
            raise {2: ConfigError, 3: RefusedError}.get(process.returncode, RunFailedError)(sentence)
        if holder_process(start.lock_folder) == process.pid and (start.lock_folder / STATE_FILE).exists():
            return process.pid
        time.sleep(_POLL_SECONDS)
    os.kill(process.pid, signal.SIGTERM)
    raise RunFailedError(f"the client did not come up in {_START_SECONDS:.0f} s; see {path}")


def stop(folder: Path) -> None:
    """End what runs for a home, and wait for it.

    Raises:
        ConfigError: nothing does.
        RunFailedError: it does not end.
    """
    process = holder_process(folder)
    if process is None:
        raise ConfigError(f"{folder}: not started; there is nothing to stop")
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while holder_process(folder) is not None:
        if time.monotonic() > deadline:
            raise RunFailedError(f"process {process} does not end; end it with kill -9 {process}")
        time.sleep(_POLL_SECONDS)


def holder_process(folder: Path) -> int | None:
    """The process that runs for a home, or None."""
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode("ascii", "replace")
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: started already, by process {holder_process(folder)}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _agent_part(start: Start, log: Path) -> Part:
    command = [sys.executable, "-P", "-m", "fedlearn.agent.deployed", str(start.policy_path)]
    if start.same_user:
        command.append("--same-user")
    else:
        command += ["--group", GROUP]
    return Part("agent", command, dict(os.environ), log / "agent.jsonl", user=_user(start, AGENT_USER))


def _known_to_node(folder: Path) -> tuple[str, Path]:
    """The coordinator's address and the agent's socket."""
    path = folder / _NODE_FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return values[_ADDRESS_KEY], Path(values[SOCKET_KEY])
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ConfigError(
            f"{path}: cannot be read; fedlearn client start writes it, as root or for the agent"
        ) from None


def _node_part(start: Start, address: str, log: Path) -> Part:
    place = start.node_folder
    command = [sys.executable, "-P", "-m", "fedlearn.flower.supernode", "--superlink", address]
    command += ["--root-certificates", str(place / "ca.crt"), "--auth-supernode-private-key", str(place / "node.key")]
    command += ["--host", "127.0.0.1", "--port", str(free_port()), "--node-config", str(place / _NODE_FILE)]
    environment = flower_environment(place / "flwr") | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25"}
    return Part("node", command, environment, log / "node.jsonl", user=_user(start, NODE_USER))


def _prepare_node(start: Start, policy: HolderPolicy) -> None:
    """The node's folder: its key, the authority, where the coordinator and the agent's socket are."""
    place = start.node_folder
    for folder in (place, place / "flwr"):
        folder.mkdir(mode=0o700, exist_ok=True)
    known = {_ADDRESS_KEY: Joined.load(start.folder.parent).address, SOCKET_KEY: str(policy.socket_path)}
    write_whole(place / _NODE_FILE, tomli_w.dumps(known).encode(), mode=0o600)
    if not start.two_users:
        return
    _make_socket_folder(policy.socket_path.parent)
    for name in ("ca.crt", "node.key"):
        write_whole(place / name, (start.folder / name).read_bytes(), mode=0o600)
    owner = pwd.getpwnam(NODE_USER)
    for path in (place, *place.iterdir()):
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _make_socket_folder(folder: Path) -> None:
    """A folder that the group alone may enter; one that is there already stays as it is.

    Raises:
        ConfigError: the node could not enter it.
    """
    group = grp.getgrnam(GROUP).gr_gid
    if not folder.exists():
        folder.mkdir(mode=0o750, parents=True)
        os.chown(folder, pwd.getpwnam(AGENT_USER).pw_uid, group)
    status = folder.stat()
    if not (status.st_mode & 0o001 or (status.st_mode & 0o010 and status.st_gid == group)):
        raise ConfigError(
            f"{folder}: the user {NODE_USER} cannot enter it; let agent.socket of the policy lie in a folder of the "
            f'group {GROUP}, such as "/run/fedlearn/agent.sock"'
        )


def _user(start: Start, name: str) -> dict[str, object]:
    if not start.two_users:
        return {}
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": [grp.getgrnam(GROUP).gr_gid]}
