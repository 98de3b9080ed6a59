"""A data holder's home for two users, as `fedlearn client join --system` lays it out.

    HOME            root's, which others may pass through
      client/       fedlearn-agent's alone: key, policy, roster, ledger, log
      node/         fedlearn-node's alone: Flower's key and state, and where the coordinator and the socket are
      door/         fedlearn-agent's; the group fedlearn may enter: the agent's socket

Whoever owns a folder may put anything in it: root writes into none of them once they are given away.
"""

import os
import shutil
import stat
from pathlib import Path
from typing import Final

import tomli_w

from fedlearn.deployment.starting import ADDRESS_KEY, NODE_FILE, NODE_FOLDER
from fedlearn.deployment.users import Users, check_can_run, may
from fedlearn.enrolment.joining import Joined
from fedlearn.errors import ConfigError
from fedlearn.flower.node_app import SOCKET_KEY
from fedlearn.host.durable import write_whole
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.policy.policy_file import with_value

__all__ = ["check_place", "lay_out"]

_DOOR: Final = "door"


def check_place(home: Path, users: Users) -> None:
    """See, before anything is joined, that both users could work in a home that is or will be there.

    Raises:
        ConfigError: they cannot run this program or enter the place, or it is not root's.
    """
    there = next(place for place in (home, *home.parents) if place.exists()).resolve()
    for place in (there, *there.parents):
        status = place.stat()
        if status.st_uid != 0:
            raise ConfigError(
                f"{place} is not root's, so that its owner could change what is below it; take another home"
            )
        # In a sticky folder such as /tmp, what is root's is root's alone; but what is not there yet, anybody may make.
        sticky = place != there and status.st_mode & stat.S_ISVTX
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            raise ConfigError(f"others may write in {place}, and change what is below it; take another home")
    for account in (users.agent, users.node):
        if not may(account.pw_uid, {account.pw_gid, users.group}, there, 1):
            raise ConfigError(
                f"the user {account.pw_name} may not enter {there}; take another home: --home /var/lib/fedlearn"
            )
        check_can_run(account, {users.group})


def lay_out(home: Path, users: Users) -> None:
    """Give a home that root has just joined with to the two users.

    Raises:
        ConfigError: the policy has no `agent.socket` on a line of its own, or one in somebody else's folder, or a file
            cannot be written.
    """
    joined = Joined.load(home)
    policy = HolderPolicy.read(joined.folder / "client.toml")
    try:
        if policy.socket_path.parent == joined.folder:
            told = f"../{_DOOR}/{policy.socket_path.name}"
            write_whole(policy.path, with_value(policy.path.read_bytes(), "agent", "socket", told, place=policy.path))
            policy = HolderPolicy.read(policy.path)
        home.chmod(0o755)
        _make_door(home, policy.socket_path.parent, users)
        _make_node_folder(home / NODE_FOLDER, joined, policy, users)
        for path in (*joined.folder.rglob("*"), joined.folder):
            os.chown(path, users.agent.pw_uid, users.agent.pw_gid, follow_symlinks=False)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from None


def _make_door(home: Path, folder: Path, users: Users) -> None:
    """A folder that the group alone may enter; one that is there already and lets the node in stays as it is."""
    if folder.exists() and may(users.node.pw_uid, {users.node.pw_gid, users.group}, folder, 1):
        return
    folder = folder.resolve()
    if folder.exists() and home.resolve() not in folder.parents:
        raise ConfigError(
            f"agent.socket lies in {folder}, which {users.node.pw_name} may not enter and {home} does not hold; "
            f'write agent.socket = "../{_DOOR}/agent.sock" into the policy'
        )
    folder.mkdir(mode=0o750, exist_ok=True)
    folder.chmod(0o750)
    os.chown(folder, users.agent.pw_uid, users.group)


def _make_node_folder(folder: Path, joined: Joined, policy: HolderPolicy, users: Users) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier membership left
    folder.mkdir(mode=0o700)  # root's: one that somebody still writes in could not be taken away, and is not used
    (folder / "flwr").mkdir(mode=0o700)
    known = {ADDRESS_KEY: joined.address, SOCKET_KEY: str(policy.socket_path.resolve())}
    write_whole(folder / NODE_FILE, tomli_w.dumps(known).encode(), mode=0o600)
    for name in ("ca.crt", "node.key"):
        write_whole(folder / name, (joined.folder / name).read_bytes(), mode=0o600)
    for path in (*folder.iterdir(), folder):
        os.chown(path, users.node.pw_uid, users.node.pw_gid, follow_symlinks=False)
