"""The two users of a data holder's machine: who owns the records, and who runs what the coordinator ships."""

import grp
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fedlearn.errors import ConfigError, RunFailedError

__all__ = ["AGENT_USER", "GROUP", "NODE_USER", "Users", "acting_as_owner", "check_can_run", "make_users", "may"]

AGENT_USER: Final = "fedlearn-agent"
NODE_USER: Final = "fedlearn-node"
GROUP: Final = "fedlearn"  # whoever is in it reaches the agent's socket


@dataclass(frozen=True, slots=True)
class Users:
    """The two users and the group that they share, as this machine knows them."""

    agent: pwd.struct_passwd
    node: pwd.struct_passwd
    group: int

    @classmethod
    def find(cls) -> Self:
        """Look them up.

        Raises:
            ConfigError: one is missing.
        """
        try:
            return cls(pwd.getpwnam(AGENT_USER), pwd.getpwnam(NODE_USER), grp.getgrnam(GROUP).gr_gid)
        except KeyError as error:
            raise ConfigError(
                f"{error.args[0]}; fedlearn client join --system makes the users, or start with --same-user"
            ) from None


def make_users() -> Users:
    """Make the users and their group where they are not there yet: no password, no shell, no home.

    Raises:
        ConfigError: this process may not, or the system has no such commands.
        RunFailedError: one of them fails.
    """
    if os.geteuid() != 0:
        raise ConfigError("--system makes users and gives files to them, which root alone may; run it with sudo")
    nowhere = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
    if not _is_known(grp.getgrnam, GROUP):
        _command("groupadd", "--system", GROUP)
    for name in (AGENT_USER, NODE_USER):
        if not _is_known(pwd.getpwnam, name):
            _command("useradd", *nowhere, "--user-group", "--groups", GROUP, name)
    return Users.find()


@contextmanager
def acting_as_owner(folder: Path) -> Iterator[None]:
    """As root, act as the owner of a folder: what is written there is its owner's, and nothing else can be written."""
    if os.geteuid() != 0 or not folder.is_dir() or (status := folder.stat()).st_uid == 0:
        yield
        return
    before = os.getgroups(), os.getegid()
    os.setgroups([status.st_gid])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[1])
        os.setgroups(before[0])


def check_can_run(account: pwd.struct_passwd, groups: Iterable[int]) -> None:
    """See that a user could run this Python and this package.

    Raises:
        ConfigError: it lies where that user may not go.
    """
    for path in (Path(sys.executable), Path(__file__)):
        if not may(account.pw_uid, {account.pw_gid, *groups}, path, 4):
            raise ConfigError(
                f"the user {account.pw_name} may not read {path.resolve()}; install fedlearn where every user may, "
                "such as /opt/fedlearn"
            )


def may(uid: int, groups: Iterable[int], path: Path, right: int) -> bool:
    """Whether a user other than root could use an existing path, by its modes: `right` is 4 to read, 1 to enter."""
    members = set(groups)

    def allows(place: Path, wanted: int) -> bool:
        status = place.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in members else 0
        return bool(status.st_mode >> shift & wanted)

    real = path.resolve()
    return all(allows(parent, 1) for parent in real.parents) and allows(real, right)


def _is_known(find: Callable[[str], object], name: str) -> bool:
    try:
        find(name)
    except KeyError:
        return False
    return True


def _command(name: str, *arguments: str) -> None:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise ConfigError(
            f"{name} is not on this machine; make the group {GROUP} with {AGENT_USER} and {NODE_USER} in it by hand"
        )
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)  # noqa: S603 (fixed words)
    if done.returncode:
        raise RunFailedError(f"{name} fails: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")
