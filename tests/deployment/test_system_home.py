"""What `client join --system` checks before it joins, and to whom it gives what; the users are some that are there."""

import json
import os
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from fedlearn.cli import app
from fedlearn.crypto.certificates import Authority, new_node_key
from fedlearn.deployment.background import only_one
from fedlearn.deployment.holder_status import leave, read_status
from fedlearn.deployment.starting import Start, stop
from fedlearn.deployment.system_home import check_place, lay_out
from fedlearn.deployment.two_users import run_as_two_users
from fedlearn.deployment.users import Users, acting_as_owner, make_users, may
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.flower.node_app import SOCKET_KEY
from fedlearn.host.durable import locked, write_whole
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.policy.policy_file import with_value
from tests.holder_files import client_id, write_policy

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> Users:
    for name, other in (("AGENT_USER", "daemon"), ("NODE_USER", "nobody"), ("GROUP", "nogroup")):
        monkeypatch.setattr(f"fedlearn.deployment.users.{name}", other)
    return Users.find()


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of root's that has joined, where everybody can go."""
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:
        Path(place).chmod(0o755)
        folder = write_policy(Path(place) / "home" / "client").parent
        folder.chmod(0o700)
        (folder / "ca.crt").write_bytes(Authority.new().certificate.pem)
        write_whole(folder / "node.key", new_node_key(), mode=0o600)
        joined = {
            "format": "fedlearn/v1/joined",
            "name": "Ada",
            "address": "fl.example.org:8443",
            "join_address": "fl.example.org:8444",
            "client_id": client_id(0).hex(),
        }
        (folder / "server.toml").write_text(tomli_w.dumps(joined))
        yield folder.parent


@as_root
def test_each_user_gets_its_part_and_the_socket_lies_where_both_can_go(home, users):
    lay_out(home, users)
    agent, node = users.agent.pw_uid, users.node.pw_uid
    policy = HolderPolicy.read(home / "client" / "client.toml")
    assert policy.agent.socket == "../door/agent.sock"
    known = tomllib.loads((home / "node" / "node.toml").read_text())
    assert known == {"superlink": "fl.example.org:8443", SOCKET_KEY: str(home / "door" / "agent.sock")}
    assert {path.stat().st_uid for path in (home / "client", *(home / "client").iterdir())} == {agent}
    assert {path.stat().st_uid for path in (home / "node", *(home / "node").iterdir())} == {node}
    for path in (home / "client" / "identity.key", home / "client" / "client.toml"):
        assert may(agent, set(), path, 4)
        assert not may(node, {users.group}, path, 4)
    assert may(node, {users.group}, home / "node" / "node.key", 4)
    assert may(node, {users.group}, home / "door", 1)
    assert not may(2, set(), home / "door", 1), "nobody else enters"


@as_root
def test_a_home_that_was_not_laid_out_is_not_started_for_two_users(home, users):
    start = Start(home / "client", same_user=False)
    with pytest.raises(ConfigError, match="not laid out for two users"):
        start.check_users()
    lay_out(home, users)
    start.check_users()


@as_root
def test_links_that_lie_in_the_nodes_folder_are_not_followed(home, users, tmp_path):
    lay_out(home, users)
    (tmp_path / "victim").write_text("root's")
    (home / "node" / "node.toml").unlink()
    (home / "node" / "node.toml").symlink_to(tmp_path / "victim")
    leave(home / "client")
    assert not (home / "node" / "node.key").exists()
    assert (tmp_path / "victim").read_text() == "root's"
    assert (tmp_path / "victim").stat().st_uid == 0


@as_root
def test_what_root_writes_into_a_holders_folder_is_the_holders(home, users):
    lay_out(home, users)
    with acting_as_owner(home / "client"):
        (home / "client" / "paused").touch()
        with pytest.raises(PermissionError):
            (home / "node" / "mine").touch()
    assert (home / "client" / "paused").stat().st_uid == users.agent.pw_uid
    assert os.geteuid() == 0


@as_root
def test_a_place_where_the_users_cannot_go_or_that_is_not_roots_is_refused_before_anything_is_joined(home, users):
    home.chmod(0o700)
    with pytest.raises(ConfigError, match="the user daemon may not enter"):
        check_place(home / "deeper", users)
    home.chmod(0o755)
    os.chown(home, 1, 1)
    with pytest.raises(ConfigError, match="is not root's"):
        check_place(home, users)


@as_root
def test_root_ends_no_process_of_others_because_the_nodes_folder_says_so(home, users):
    lay_out(home, users)
    lock = home / "node" / "start.lock"
    victim = subprocess.Popen(["sleep", "60"])
    try:
        with locked(lock) as descriptor:
            os.pwrite(descriptor, str(victim.pid).encode(), 0)
            os.chown(lock, users.node.pw_uid, users.node.pw_gid)
            with pytest.raises(RunFailedError, match="not of the user who owns this file"):
                stop(home / "client")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@as_root
@pytest.mark.timeout(30)
def test_root_waits_for_nothing_and_follows_nothing_in_the_nodes_folder(home, users, tmp_path):
    lay_out(home, users)
    for name in ("start.lock", "state.json"):
        os.mkfifo(home / "node" / name)
    assert not read_status(home / "client").parts
    (tmp_path / "victim").write_text(
        json.dumps({"parts": {"node": {"alive": True, "up": True, "seconds": 1, "problem": None}}})
    )
    for name in ("start.lock", "state.json"):
        (home / "node" / name).unlink()
        (home / "node" / name).symlink_to(tmp_path / "victim")
    assert not read_status(home / "client").parts
    with pytest.raises(OSError, match="symbolic links"), only_one(home / "node" / "start.lock", otherwise=str):
        pass
    assert (tmp_path / "victim").stat().st_size


@as_root
def test_the_node_says_nothing_of_the_agent_and_obeys_no_terminal(home, users):
    lay_out(home, users)
    parts = {
        "agent": {"alive": True, "up": True, "seconds": 9, "problem": None},
        "node": {"alive": False, "up": False, "seconds": 7, "problem": "\x1b[2Jall is well"},
    }
    (home / "node" / "state.json").write_text(json.dumps({"parts": parts}))
    assert set(read_status(home / "client").parts) == {"node"}
    shown = CliRunner().invoke(app, ["client", "status", "--home", str(home)]).output
    assert "node: down for 7 s" in shown
    assert "\x1b" not in shown
    for told in ({"parts": {"node": {"alive": 1}}}, {"parts": {"node": "well"}}, ["parts"]):
        (home / "node" / "state.json").write_text(json.dumps(told))
        assert not read_status(home / "client").parts


@as_root
def test_a_folder_of_the_node_that_cannot_be_taken_away_is_not_used_again(home, users, monkeypatch):
    lay_out(home, users)
    (home / "node" / "flwr").rmdir()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as where a process goes on making files there
    with pytest.raises(ConfigError, match="node: cannot be written: File exists"):
        lay_out(home, users)


@as_root
def test_a_place_in_which_others_may_make_a_name_is_no_place_for_a_home(home, users):
    home.chmod(0o1777)
    with pytest.raises(ConfigError, match="others may write"):
        check_place(home / "deeper", users)
    home.chmod(0o755)
    home.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write"):
        check_place(home, users)
    os.chown(home.parent, 1, 1)
    home.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="is not root's"):
        check_place(home, users)


@as_root
def test_no_folder_of_others_is_given_away_because_the_policy_puts_the_socket_there(home, users, tmp_path):
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    policy = home / "client" / "client.toml"
    write_whole(policy, with_value(policy.read_bytes(), "agent", "socket", str(other / "agent.sock"), place=policy))
    with pytest.raises(ConfigError, match="which nobody may not enter"):
        lay_out(home, users)
    assert (other.stat().st_uid, other.stat().st_mode & 0o777) == (0, 0o700)


@as_root
def test_what_stands_in_roots_environment_is_not_the_nodes(home, users, monkeypatch):
    lay_out(home, users)
    given: list[dict[str, str]] = []

    def started(command: list[str], *, env: dict[str, str], **_: object) -> None:
        given.append(env)
        raise OSError("enough is seen")

    monkeypatch.setattr("fedlearn.deployment.two_users.check_can_run", lambda *_: None)
    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # those of the tests stay
    monkeypatch.setenv("TOKEN", "root's")
    monkeypatch.setenv("FEDLEARN_LOG", "json")
    with pytest.raises(OSError, match="enough"):
        run_as_two_users(home, lambda *_, **__: None)
    (env,) = given
    assert "TOKEN" not in env
    assert (env["FEDLEARN_LOG"], env["PATH"]) == ("json", os.environ["PATH"])


def test_without_root_no_users_are_made(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="root alone"):
        make_users()


def test_one_part_is_not_run_as_root(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigError, match="run it as fedlearn-node"):
        Start(tmp_path, same_user=False, only="node").check_users()
