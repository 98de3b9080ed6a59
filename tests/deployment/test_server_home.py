"""The coordinator's folder: what `server init` makes, who may read it, and what damages it."""

import stat
import tomllib
from pathlib import Path

import pytest
from server_files import free_ports, new_home

from fedlearn.config.run_config import RunConfig
from fedlearn.deployment.superlink_process import set_damaged_aside
from fedlearn.enrolment.server_home import COORDINATOR, ServerHome
from fedlearn.errors import ConfigError
from fedlearn.host.durable import open_database


def test_keys_are_their_owners_alone(tmp_path):
    home = new_home(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [home.folder, *home.folder.iterdir()]}
    assert {modes[name] for name in ("ca.key", "server.key", "identity.key", "server.toml")} == {0o600}
    assert {modes[name] for name in ("server", "runs", "flwr")} == {0o700}


def test_what_was_made_is_what_is_loaded(tmp_path):
    home = new_home(tmp_path)
    assert ServerHome.load(tmp_path) == home
    assert home.entry.name == COORDINATOR
    assert len(home.coordinator_id) == 16
    assert home.superlink_address == f"127.0.0.1:{home.port}"
    assert set(home.certificate.names) >= {"localhost", "127.0.0.1"}


def test_a_path_that_is_relative_is_made_absolute(tmp_path, monkeypatch):
    """Flower's SuperLink works in another folder."""
    monkeypatch.chdir(tmp_path)
    new_home(Path("operator"))
    assert ServerHome.load(Path("operator")).certificate_path == tmp_path / "operator" / "server" / "server.crt"


def test_names_and_addresses_are_in_the_certificate_and_the_first_is_where_clients_go(tmp_path):
    names = ["federation.example.org", "10.1.2.3"]
    home = ServerHome.create(tmp_path, names=names, host="0.0.0.0", port=8443, join_port=8444)
    assert set(home.certificate.names) == {*names, "localhost", "127.0.0.1"}
    assert (home.superlink_address, home.join_address) == ("federation.example.org:8443", "federation.example.org:8444")
    assert home.local_address == "127.0.0.1:8443"


def test_a_new_certificate_is_of_the_same_authority_and_keeps_the_names(tmp_path):
    home = new_home(tmp_path)
    before, authority = home.certificate, home.authority.certificate.fingerprint
    assert home.rotate_certificate([]).names == before.names
    assert home.certificate.fingerprint != before.fingerprint
    assert home.authority.certificate.fingerprint == authority
    assert "new.example.org" in home.rotate_certificate(["new.example.org"]).names


def test_a_second_init_changes_nothing(tmp_path):
    home = new_home(tmp_path)
    before = home.authority_path.read_bytes()
    with pytest.raises(ConfigError, match="a server is there already; nothing was changed"):
        new_home(tmp_path)
    assert home.authority_path.read_bytes() == before


def test_the_example_of_a_run_is_one(tmp_path):
    home = new_home(tmp_path)
    config = RunConfig.load(home.folder / "run.example.toml")
    assert config.secure_aggregation.masking
    assert config.secure_aggregation.planned_cohort == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"port": 0}, "a port of 0"),
        ({"port": 70000}, "a port of 70000"),
        ({"join_port": 8443}, "both 8443"),
        ({"host": "example.org"}, "--host example.org"),
        ({"host": ""}, "--host : expected an address"),
        ({"names": ["no name"]}, "neither a host name, .* nor an address"),
    ],
    ids=str,
)
def test_bad_values_are_one_sentence_and_leave_nothing(tmp_path, change, sentence):
    values = {"names": [], "host": "127.0.0.1", "port": 8443, "join_port": 8444} | change
    with pytest.raises(ConfigError, match=sentence):
        ServerHome.create(tmp_path / "home", **values)
    assert not (tmp_path / "home").exists()


def test_no_home_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="make a server with fedlearn server init"):
        ServerHome.load(tmp_path)


@pytest.mark.parametrize("name", ["ca.key", "server.key", "identity.key"])
def test_a_key_that_others_may_read_or_that_is_gone_is_one_sentence(tmp_path, name):
    home = new_home(tmp_path)
    (home.folder / name).chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640 lets others read the key; run chmod 600"):
        ServerHome.load(tmp_path)
    (home.folder / name).unlink()
    with pytest.raises(ConfigError, match="the key cannot be read"):
        ServerHome.load(tmp_path)


def test_a_lost_key_of_the_certificate_is_replaced_with_the_certificate(tmp_path):
    home = new_home(tmp_path)
    home.key_path.unlink()
    ServerHome.load(tmp_path, rotating=True).rotate_certificate([])
    assert ServerHome.load(tmp_path).certificate.fingerprint == home.certificate.fingerprint
    (home.folder / "ca.key").unlink()
    with pytest.raises(ConfigError, match="the key cannot be read"):
        ServerHome.load(tmp_path, rotating=True)


@pytest.mark.parametrize("content", [b"", b"not TOML", b"\xff", b'format = "fedlearn/v2/server"\n'])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    home = new_home(tmp_path)
    (home.folder / "server.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="restore it from a backup"):
        ServerHome.load(tmp_path)


def test_its_own_file_is_all_that_it_needs_to_know(tmp_path):
    home = new_home(tmp_path)
    values = tomllib.loads((home.folder / "server.toml").read_text())
    assert not any("key" in name or "secret" in name for name in values)
    assert free_ports(2) != [home.port, home.join_port]


def filled(path):
    database = open_database(path, "CREATE TABLE kept (content BLOB)")
    for _ in range(200):
        database.execute("INSERT INTO kept VALUES (randomblob(4000))")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def test_f15_a_damaged_database_is_moved_aside_and_a_whole_one_is_not(tmp_path):
    path = tmp_path / "superlink.db"
    assert set_damaged_aside(path) is None
    filled(path)
    assert set_damaged_aside(path) is None
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096, 2):
        content[page * 4096 : page * 4096 + 512] = b"\xff" * 512
    path.write_bytes(content)
    aside = set_damaged_aside(path)
    assert aside is not None
    assert aside.read_bytes() == content
    assert not path.exists()


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_f15_a_database_that_is_cut_is_moved_aside(tmp_path, keep):
    path = tmp_path / "superlink.db"
    filled(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert set_damaged_aside(path) is not None
