"""Each thing that can be wrong with a machine is one line of `fedlearn doctor`: a sentence, and what to do."""

import json
import os
import shutil
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w
from server_files import invited, new_home
from typer.testing import CliRunner

from fedlearn.cli import app
from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.certificates import Authority, new_node_key
from fedlearn.deployment.background import only_one
from fedlearn.deployment.doctor import Check, examine
from fedlearn.deployment.doctor.installation import device_line, package_lines, python_line
from fedlearn.deployment.doctor.network import ask_server, clock_line, date_line, way_lines
from fedlearn.flower.node_app import SOCKET_KEY
from fedlearn.host.durable import write_whole
from fedlearn.ledger import Ledger
from fedlearn.privacy.guarantee import PrivacyUnit
from tests.holder_files import FOUR, small_roster, write_policy

TABLE = """
[data.columns.age]
low = 0
high = 120

[model]"""


@pytest.fixture
def holder(tmp_path: Path) -> Path:
    """A holder's folder in which all is well but that nothing was joined."""
    folder = write_policy(tmp_path / "client").parent
    folder.chmod(0o700)
    write_whole(folder / "node.key", new_node_key(), mode=0o600)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Path:
    return new_home(tmp_path).folder


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """A run's file that the holder's policy accepts, with overrides."""

    def write(*overrides: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(RunConfig.load("digits", [*FOUR, *overrides]).to_toml())
        return path

    return write


def of(folder: Path, name: str, run: Path | None = None) -> list[Check]:
    """The lines of that name."""
    return [check for check in examine(folder.parent, run) if check.name == name]


def the(folder: Path, name: str, status: str, run: Path | None = None) -> str:
    """Sentence and remedy of the one line of that name, which has that status."""
    (check,) = of(folder, name, run)
    assert check.status == status, check
    assert "\n" not in check.detail
    assert bool(check.remedy) == (status != "ok")
    return f"{check.detail} -> {check.remedy}"


def test_without_a_home_the_installation_is_examined_and_all_is_well(tmp_path):
    result = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path / "none"), "--json"])
    assert result.exit_code == 0, result.output
    checks = json.loads(result.stdout.splitlines()[-1])["checks"]
    assert [check["name"] for check in checks] == ["python", "packages", "flower", "device"]
    assert all(set(check) == {"name", "status", "detail", "remedy"} for check in checks)
    assert {check["status"] for check in checks} <= {"ok", "warning"}


def test_an_error_is_exit_code_1_with_every_line_before(holder):
    result = CliRunner().invoke(app, ["doctor", "--home", str(holder.parent)])
    assert result.exit_code == 1
    assert " error    joined " in result.stdout
    assert "what to do: fedlearn client join CODE" in result.stdout
    assert " ok       keys " in result.stdout


def test_a_run_that_is_not_there_is_bad_input(tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "none.toml"), "--home", str(tmp_path)])
    assert "no such file" in str(result.exception)
    assert result.stdout == ""


class TestInstallation:
    project = {  # noqa: RUF012
        "dependencies": ["torch>=2.9", "flwr>=1.41,<2"],
        "optional-dependencies": {"dev": ["ruff>=0.8"]},
    }

    def lines(self, tmp_path: Path, **versions: str) -> list[Check]:
        (tmp_path / "lock").write_text("torch==2.13.0\nflwr==1.41.0\nabsent==1\nruff==9\n")
        return list(package_lines(tmp_path / "lock", self.project, versions.get))

    def test_an_old_python(self):
        assert python_line("3.10.4", ">=3.11").status == "error"
        assert python_line("3.11.0", ">=3.11").status == "ok"

    def test_packages_as_in_the_lock_whatever_they_were_built_for(self, tmp_path):
        (line,) = self.lines(tmp_path, torch="2.13.0+cu128", flwr="1.41.0", ruff="1")
        assert line.status == "ok"
        assert line.detail.startswith("2 packages")

    def test_another_version_than_the_locks(self, tmp_path):
        (line,) = self.lines(tmp_path, torch="2.12.1", flwr="1.41.0")
        assert line.status == "warning"
        assert "torch 2.12.1 (2.13.0)" in line.detail
        assert "pip install -c" in str(line.remedy)

    @pytest.mark.parametrize(
        ("versions", "told"),
        [({"torch": "2.13.0"}, "flwr is missing"), ({"torch": "2.13.0", "flwr": "1.40.0"}, "flwr 1.40.0 does not fit")],
    )
    def test_a_package_that_is_missing_or_does_not_fit(self, tmp_path, versions, told):
        first, *_ = self.lines(tmp_path, **versions)
        assert (first.status, told in first.detail) == ("error", True)

    def test_an_installation_without_its_lock(self, tmp_path):
        versions = {"torch": "2.13.0", "flwr": "1.41.0"}
        (line,) = package_lines(tmp_path / "none", self.project, versions.get)
        assert (line.status, "cannot be read" in line.detail) == ("warning", True)

    @pytest.mark.parametrize(
        ("chosen", "built_for", "gpu", "status", "told"),
        [
            ("cuda", "12.8", True, "ok", "cuda"),
            ("cpu", None, False, "ok", "no NVIDIA driver"),
            ("cpu", None, True, "warning", "a build without CUDA"),
            ("cpu", "12.8", True, "warning", "cannot use it: too old"),
        ],
    )
    def test_the_device_that_is_used_or_why_no_gpu_is(self, chosen, built_for, gpu, status, told):
        line = device_line(chosen, torch_version="2.13.0", built_for=built_for, gpu=gpu, why_not="too old")
        assert line.status == status
        assert told in line.detail

    def test_a_device_that_a_run_wants_and_that_is_not_there(self, tmp_path, run):
        assert "does not find here" in the(tmp_path / "none", "device", "error", run('runtime.device="mps"'))


class TestFiles:
    def test_a_key_that_others_may_read(self, holder):
        (holder / "node.key").chmod(0o640)
        good, bad = sorted(of(holder, "keys"), key=lambda check: check.status != "ok")
        assert good.detail.startswith("identity.key")
        assert "lets others read the key" in bad.detail
        assert bad.remedy == f"chmod 600 {holder / 'node.key'}"

    def test_a_key_that_is_gone(self, server):
        (server / "ca.key").unlink()
        bad = next(check for check in of(server, "keys") if check.status == "error")
        assert "backup" in str(bad.remedy)
        assert the(server, "server", "error")

    def test_a_folder_that_others_may_enter(self, holder, server):
        for folder in (holder, server):
            folder.chmod(0o755)
        assert [check.status for check in of(holder, "folder")] == ["error", "error"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    def test_a_home_of_somebody_else_is_one_line(self):
        with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:
            Path(place).chmod(0o755)
            folder = write_policy(Path(place) / "client").parent
            folder.chmod(0o700)
            os.seteuid(65534)
            try:
                lines = [check for check in examine(Path(place)) if check.status == "error"]
            finally:
                os.seteuid(0)
        assert [(line.name, "not open to this user" in line.detail) for line in lines] == [("folder", True)]

    def test_flowers_home_is_not_what_it_should_be(self, server):
        assert the(server, "flower home", "ok")
        (server / "flwr").rmdir()
        (server / "flwr").touch()
        assert "made anew" in the(server, "flower home", "error")


class TestDates:
    @pytest.mark.parametrize(("days", "status"), [(31, "ok"), (29, "warning"), (0, "error"), (-3, "error")])
    def test_f20_a_certificate_is_warned_of_30_days_before_it_ends(self, days, status):
        certificate = Authority.new().certificate
        line = date_line("authority", certificate, "renew it", now=certificate.ends - timedelta(days=days))
        assert line.status == status
        assert f"{certificate.ends:%Y-%m-%d}" in line.detail

    def test_f20_the_coordinators_own_certificates_are_looked_at(self, server):
        assert the(server, "authority", "ok")
        home = new_home(server.parent / "other")
        pair = home.authority.server_pair(["localhost"], days=20)
        home._write_pair("server", pair)
        lines = of(home.folder, "server certificate")
        assert [line.status for line in lines] == ["warning", "error"]
        assert "rotate-certificate" in str(lines[0].remedy)
        assert "it is not for 127.0.0.1" in lines[1].detail


@contextmanager
def serving(
    authority: Authority | None, tmp_path: Path, names: tuple[str, ...] = ("127.0.0.1",), days: int = 300
) -> Iterator[str]:
    """The address of a server with a certificate of an authority; without one it speaks plain text."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    class Patient(HTTPServer):
        def handle_error(self, *_: object) -> None: ...

    listener = Patient(("127.0.0.1", 0), Answers)
    if authority is not None:
        pair = authority.server_pair(list(names), days=days)
        (tmp_path / "pair.pem").write_bytes(pair.key_pem + pair.certificate.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "pair.pem")
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=True)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()


class TestTheWay:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        made = Authority.new()
        (tmp_path / "ca.crt").write_bytes(made.certificate.pem)
        return made

    def test_all_is_well(self, authority, tmp_path):
        with serving(authority, tmp_path) as address:
            lines = list(way_lines(address, tmp_path / "ca.crt"))
        assert [(line.name, line.status) for line in lines] == [
            ("reachability", "ok"),
            ("server certificate", "ok"),
            ("clock", "ok"),
        ]

    def test_f20_a_certificate_that_ends_soon_is_seen_from_the_client(self, authority, tmp_path):
        with serving(authority, tmp_path, days=12) as address:
            lines = list(way_lines(address, tmp_path / "ca.crt"))
        assert lines[1].status == "warning"
        assert "in 11 days" in lines[1].detail

    @pytest.mark.usefixtures("authority")
    def test_nobody_listens(self, tmp_path):
        (line,) = way_lines("127.0.0.1:1", tmp_path / "ca.crt")
        assert (line.status, "nobody listens" in line.detail) == ("error", True)

    @pytest.mark.usefixtures("authority")
    def test_a_name_that_nobody_knows(self, tmp_path):
        assert "nobody knows" in ask_server("no-such-host.invalid:8443", tmp_path / "ca.crt").problem

    @pytest.mark.usefixtures("authority")
    def test_plain_text_where_tls_should_be_is_named(self, tmp_path):
        with serving(None, tmp_path) as address:
            assert "answers in plain text; expected TLS" in ask_server(address, tmp_path / "ca.crt").problem

    @pytest.mark.parametrize(
        ("own", "names", "days", "told"),
        [
            (False, ("127.0.0.1",), 300, "not of the authority"),
            (True, ("example.org",), 300, "for other names"),
            (True, ("127.0.0.1",), 0, "has expired"),
        ],
    )
    def test_a_certificate_that_is_not_believed_says_why(self, authority, tmp_path, own, names, days, told):
        with serving(authority if own else Authority.new(), tmp_path, names, days) as address:
            answer = ask_server(address, tmp_path / "ca.crt")
        assert told in answer.problem
        assert answer.remedy

    @pytest.mark.parametrize(
        ("offset", "status"),
        [(0.5, "ok"), (3.0, "warning"), (-100.0, "warning"), (4.5, "error"), (-241.0, "error"), (None, "warning")],
    )
    def test_f6_the_clock(self, offset, status):
        line = clock_line(offset)
        assert line.status == status
        assert bool(line.remedy) == (status != "ok")


class TestCoordinator:
    def test_all_is_well_before_and_after_it_has_a_run(self, server):
        checks = list(examine(server.parent, server / "run.example.toml"))
        assert [check for check in checks if check.status != "ok"] == []
        assert "it can be begun here" in the(server, "run", "ok", server / "run.example.toml")

    def test_a_port_that_somebody_has(self, tmp_path):
        home = new_home(tmp_path)
        with only_listening(home.join_port):
            assert f"port {home.join_port} cannot be listened at" in the(home.folder, "ports", "error")

    def test_a_server_that_is_alive_and_does_not_answer(self, tmp_path):
        home = new_home(tmp_path)
        with only_one(home.folder / "service.lock", otherwise=str):
            assert "serves, and 127.0.0.1" in the(home.folder, "ports", "error")

    def test_an_interface_that_clients_cannot_reach(self, server):
        text = (server / "server.toml").read_text()
        (server / "server.toml").write_text(text.replace('address = "127.0.0.1"', 'address = "fl.example.org"'))
        assert "clients are sent to fl.example.org" in the(server, "interface", "error")

    def test_codes_that_are_expired(self, tmp_path):
        home = new_home(tmp_path)
        invited(home, "Ada", days=1)
        assert "awaited: Ada" in the(home.folder, "members", "ok")
        invited(home, "Ben", days=1e-9)
        assert "Ben are expired" in the(home.folder, "members", "warning")

    def test_f15_a_damaged_database(self, server):
        (server / "superlink.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
        assert "is damaged" in the(server, "database", "warning")

    def test_f13_and_f16_no_room(self, server, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=9 * 10**8))
        assert "0.9 GB of disk are free" in the(server, "room", "error")
        assert "0.9 GB of disk are free" in the(server, "run", "error", server / "run.example.toml")

    def test_a_run_that_cannot_be(self, server, run):
        assert "a simulation alone" in the(server, "run", "error", run("secure_aggregation.masking=false"))


@contextmanager
def only_listening(port: int) -> Iterator[None]:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        yield


class TestHolder:
    def test_a_policy_with_a_mistake(self, holder):
        path = holder / "client.toml"
        path.write_text(path.read_text() + "\n[limit]\n")
        assert "did you mean limits?" in the(holder, "policy", "error")

    def test_another_roster_than_the_accepted_one(self, holder):
        (holder / "roster.toml").write_bytes(small_roster().content + b"\n")
        assert "accept another roster" in the(holder, "policy", "error")

    def test_another_key_than_the_rosters(self, holder):
        write_whole(holder / "identity.key", bytes(32), mode=0o600)
        assert "somebody else would be believed to be you" in the(holder, "policy", "error")

    def test_a_run_that_the_policy_refuses(self, holder, run):
        assert "the policy accepts it" in the(holder, "run", "ok", run())
        told = the(holder, "run", "error", run("privacy.target_epsilon=4.5"))
        assert "epsilon is 4." in told
        assert "the policy accepts at most 3.0" in told

    def test_f16_a_model_that_would_not_fit(self, tmp_path):
        folder = write_policy(tmp_path / "client", {"max_dimension": "100000000"}).parent
        told = the(folder, "room", "warning")
        assert "would have 400 MB; expected at most 200 MB" in told
        assert "lower limits.max_dimension" in told

    def test_f13_no_disk_for_a_run(self, holder, run, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**7))
        assert "0.0 GB of disk are free" in the(holder, "room", "error", run())

    def test_the_ledger(self, holder):
        assert "nothing was booked" in the(holder, "ledger", "ok")
        book(holder, max_epsilon=3.0)
        assert the(holder, "budget of digits", "ok").startswith("0.000 of epsilon 3.0 are spent")
        content = (holder / "ledger.db").read_bytes()
        (holder / "ledger.db").write_bytes(content.replace(b'"max_epsilon":"3.0"', b'"max_epsilon":"9.0"'))
        assert "ledger.db.count" in the(holder, "ledger", "error")

    def test_a_ledger_of_another_budget(self, holder):
        book(holder, max_epsilon=2.0)
        assert "the policy says otherwise" in the(holder, "budget of digits", "error")

    def test_an_agent_that_does_not_answer(self, holder):
        assert the(holder, "running", "ok").startswith("not started")
        with only_one(holder / "start.lock", otherwise=str):
            assert "its agent does not answer" in the(holder, "running", "error")

    def test_what_is_wrong_with_a_part_is_said(self, holder):
        (holder / "state.json").write_text(
            json.dumps({"parts": {"node": {"alive": False, "up": False, "seconds": 3, "problem": "it is tired"}}})
        )
        with only_one(holder / "start.lock", otherwise=str):
            first, _ = of(holder, "running")
        assert (first.status, first.detail) == ("warning", "the node: it is tired")


def book(folder: Path, *, max_epsilon: float) -> None:
    """A ledger with one budget."""
    ledger = Ledger(folder / "ledger.db")
    ledger.open_dataset("digits", privacy_unit=PrivacyUnit.RECORD, max_epsilon=max_epsilon, max_delta=1e-5, order=None)
    ledger.close()


class TestUsers:
    @pytest.fixture
    def names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Users that every machine has play the two of ours."""
        for name, other in (("AGENT_USER", "daemon"), ("NODE_USER", "nobody"), ("GROUP", "nogroup")):
            monkeypatch.setattr(f"fedlearn.deployment.users.{name}", other)

    def test_without_the_two_users_it_is_said_what_that_means(self, holder, monkeypatch):
        monkeypatch.setattr("fedlearn.deployment.users.AGENT_USER", "no-such-user")
        told = the(holder, "users", "warning")
        assert "whose records and key the coordinator's code could then read" in told
        assert "client join CODE --system" in told

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
    @pytest.mark.usefixtures("names")
    def test_who_may_read_what(self):
        with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:  # pytest's own folders are root's alone
            Path(place).chmod(0o755)
            self.look(write_policy(Path(place) / "client").parent)

    def look(self, holder: Path) -> None:
        holder.chmod(0o700)
        assert "does not belong to" in the(holder, "users", "warning")
        give_all(holder)
        told = the(holder, "users", "error")
        assert "where agent.socket lies" in told
        assert "../door/agent.sock" in told
        write_policy(holder, {"socket": '"../door/agent.sock"'})
        (holder.parent / "door").mkdir(mode=0o700)
        give_all(holder)
        assert "chmod 750" in the(holder, "users", "error")
        (holder.parent / "door").chmod(0o755)
        assert "client join --system writes it" in the(holder, "users", "error")
        (holder.parent / "node").mkdir()
        for socket in ("elsewhere", "door"):
            known = {"superlink": "localhost:1", SOCKET_KEY: f"{holder.parent.resolve()}/{socket}/agent.sock"}
            (holder.parent / "node" / "node.toml").write_text(tomli_w.dumps(known))
            if socket == "elsewhere":
                assert "elsewhere/agent.sock; the policy has" in the(holder, "users", "error")
        assert "can read none of them" in the(holder, "users", "ok")
        holder.chmod(0o755)
        (holder / "client.toml").chmod(0o644)
        assert f"could read {holder / 'client.toml'}" in the(holder, "users", "error")
        os.chown(holder / "client.toml", 0, 0)
        (holder / "client.toml").chmod(0o600)
        assert f"cannot read {holder / 'client.toml'}" in the(holder, "users", "error")


def give_all(holder: Path) -> None:
    """To the first of the two users; what is written anew has the mode that it should have."""
    (holder / "client.toml").chmod(0o600)
    for path in (holder, *holder.iterdir()):
        os.chown(path, 1, 1)


class TestRecords:
    def table(self, tmp_path: Path, run: Callable[..., Path], rows: str) -> tuple[Path, Path]:
        """A holder of a table, and a run about it."""
        policy = write_policy(tmp_path / "client", {"source": '"rows.csv"'})
        (policy.parent / "rows.csv").write_text(rows)
        file = run()
        text = file.read_text().replace(
            'dataset = "digits"', 'dataset = "csv"\nlabel = "ill"\nclasses = [["n"], ["y"]]'
        )
        file.write_text(text.replace("\n[model]", TABLE, 1))
        return policy.parent, file

    def test_records_that_fit(self, tmp_path, run):
        folder, file = self.table(tmp_path, run, "age,ill\n20,n\n70,y\n")
        assert "2 rows, 2 columns; name a run" in the(folder, "records of digits", "ok")
        assert "2 records fit the schema" in the(folder, "records of digits", "ok", file)
        assert "is about other data" in the(folder, "records of digits", "ok", run())

    def test_rows_that_would_be_refused_are_named_and_what_is_wrong_with_the_first(self, tmp_path, run):
        rows = ["20,n"] * 50
        rows[16], rows[29], rows[49] = "old,n", "20,maybe", "999,y"
        folder, file = self.table(tmp_path, run, "\n".join(["age,ill", *rows]) + "\n")
        told = the(folder, "records of digits", "warning", file)
        assert "48 records fit the schema" in told
        assert "2 of 50 rows cannot be used and count as absent: 17, 30; the first" in told
        assert "row 17, column 'age' is 'old'" in told

    def test_what_a_row_says_stands_in_no_line_of_a_log(self, tmp_path, run):
        folder, file = self.table(tmp_path, run, "age,ill\n20,patient-4711\n")
        assert "patient-4711" in the(folder, "records of digits", "warning", file)
        result = CliRunner().invoke(app, ["doctor", str(file), "--home", str(folder.parent)])
        assert "patient-4711" in result.stdout
        assert "patient-4711" not in str(result.exception)

    def test_very_many_are_cut_short(self, tmp_path, run):
        folder, file = self.table(tmp_path, run, "age,ill\n" + "old,n\n" * 1000)
        told = the(folder, "records of digits", "warning", file)
        assert "absent: 1, 2, 3, 4," in told
        assert "19, 20, ...;" in told

    def test_a_column_too_many_is_no_matter_of_rows(self, tmp_path, run):
        folder, file = self.table(tmp_path, run, "age,ill,name\n20,n,Eve\n")
        told = the(folder, "records of digits", "error", file)
        assert "'name', which has no bounds" in told
        assert "count as absent" not in told

    def test_a_file_that_is_gone_or_no_table(self, tmp_path, run):
        folder, _ = self.table(tmp_path, run, "age,age\n20,n\n")
        assert "two columns" in the(folder, "records of digits", "error")
        (folder / "rows.csv").unlink()
        assert "no such file" in the(folder, "records of digits", "error")

    def test_what_ships(self, holder, run):
        assert "ships with fedlearn" in the(holder, "records of digits", "ok")
        assert "1437 records fit" in the(holder, "records of digits", "ok", run())


def test_nothing_is_changed(holder, server, run):
    before = {path: path.stat().st_mtime_ns for path in sorted(holder.parent.rglob("*"))}
    list(examine(holder.parent, run()))
    after = {path: path.stat().st_mtime_ns for path in sorted(holder.parent.rglob("*")) if path.name != "run.toml"}
    assert before == after


def test_the_moment_of_a_certificates_end_is_in_utc():
    assert Authority.new().certificate.ends > datetime.now(UTC)
