"""What is wrong with a deployment's files, codes, bytes and messages: one sentence, or one constant refusal, for each.

A mistake of a person ends a command with one sentence, an exit code that is not 0, no traceback, and files untouched.
Whatever a stranger sends gets the same bytes, and what is behind goes on.
"""

import asyncio
import io
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from server_files import free_ports, invited

from fedlearn.cli import main
from fedlearn.crypto.labels import REFUSAL as CONSTANT
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.invitation import Code
from fedlearn.enrolment.join_endpoint import join_app
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.holder.deployed import DeployedAgent, listen
from fedlearn.holder.deployed import main as serve_agent
from fedlearn.holder.frames import REFUSAL, Frame
from tests.holder_files import client_id, small_roster, write_policy

Change = Callable[[Path], object]

OP = ("--home", "op")
ADA = ("--home", "ada")
RECEIVED = "op/received.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An operator's home, a holder's, and files of theirs; nothing is wrong with them."""
    place = tmp_path_factory.mktemp("whole")
    port, join_port = free_ports(2)
    home = ServerHome.create(place / "op", names=[], host="127.0.0.1", port=port, join_port=join_port)
    (invitation,) = invited(home, "Ada")
    (place / "code").write_text(invitation.code)
    write_policy(place / "ada" / "client")
    (place / "sent.toml").write_bytes(small_roster().content)
    (place / "note.txt").write_text("mine")
    return place


@pytest.fixture
def place(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    copy = tmp_path / "work"
    shutil.copytree(whole, copy)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("FEDLEARN_LOG", raising=False)
    return copy


def contents(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Every path below a folder with its bytes and mode; SQLite's own files beside a database are none of ours."""
    ours = (path for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm", ".lock")))
    paths = [path for path in ours if path.name != "federation.db"]  # who opens it may tidy it up
    return {str(path): (path.read_bytes() if path.is_file() else None, path.lstat().st_mode) for path in paths}


def put(name: str, content: str | bytes) -> Change:
    """The file has this content; its mode stays."""
    return lambda place: (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def change(name: str, old: str, new: str) -> Change:
    """The first match of `old` in the file becomes `new`."""

    def edit(place: Path) -> None:
        text, count = re.subn(old, new, (place / name).read_text(), count=1, flags=re.MULTILINE)
        assert count == 1
        (place / name).write_text(text)

    return edit


def gone(name: str) -> Change:
    """The file is not there."""
    return lambda place: (place / name).unlink()


def readable(name: str) -> Change:
    """Others may read the file."""
    return lambda place: (place / name).chmod(0o644)


def policy(old: str, new: str) -> Change:
    return change("ada/client/client.toml", old, new)


def linked(name: str, to: str = "note.txt") -> Change:
    """The name is a link."""
    return lambda place: (place / name).symlink_to(to)


def pipe(name: str) -> Change:
    """The name is a pipe."""
    return lambda place: os.mkfifo(place / name)


def metrics_at(key: str) -> Change:
    """The server has 18443 for one of its ports."""
    return change(SERVER_TOML, f"^{key} = .*$", f"{key} = 18443")


DEEP = "/".join(["d" * 40] * 3)


def deep(home: str) -> Change:
    """The home lies so deep that no socket can have a path in it."""
    return lambda place: shutil.copytree(place / home, place / DEEP)


SERVER_TOML, POLICY, ROSTER = "op/server/server.toml", "ada/client/client.toml", "ada/client/roster.toml"
INVITE, STATUS = ("server", "invite", "Ben", *OP), ("server", "status", *OP)
INIT = ("server", "init", "--home", "new")
START = ("client", "start", "--same-user", *ADA)
SHOW = ("client", "roster", "show", *ADA)
ACCEPT = ("client", "roster", "accept", *ADA)
JOIN = ("client", "join", "--home", "ben")
NOBODY = Code(bytes(16), bytes(16), "127.0.0.1:1").to_text()

# name: (what is done to the files, the command, exit code, what the sentence says)
COMMANDS: dict[str, tuple[Change | None, tuple[str, ...], int, str]] = {
    # configuration of the coordinator
    "init where a server is": (None, ("server", "init", *OP), 2, "a server is there already; nothing was changed"),
    "init with port 0": (None, (*INIT, "--port", "0"), 2, "a port of 0; expected 1 to 65535"),
    "init with a port too high": (None, (*INIT, "--port", "70000"), 2, "a port of 70000; expected 1 to 65535"),
    "init with a port of letters": (None, (*INIT, "--port", "https"), 2, "'https' is not a valid integer"),
    "init with one port for both": (None, (*INIT, "--port", "9", "--join-port", "9"), 2, "both 9; expected two"),
    "init at a host name": (None, (*INIT, "--host", "example.org"), 2, "expected an address of this machine"),
    "init for a name that cannot be": (None, (*INIT, "--name", "no name"), 2, "no name"),
    "init for an empty name": (None, (*INIT, "--name", ""), 2, "name"),
    "init below a file": (None, ("server", "init", "--home", "note.txt"), 2, "note.txt.*: cannot be written"),
    "no server": (None, ("server", "status", "--home", "nowhere"), 2, "make a server with fedlearn server init"),
    "server.toml is no TOML": (put(SERVER_TOML, "["), STATUS, 2, "expected the file that fedlearn server init"),
    "server.toml is no text": (put(SERVER_TOML, b"\xff"), STATUS, 2, "expected the file that fedlearn server init"),
    "server.toml lacks a key": (change(SERVER_TOML, "^host.*$", ""), STATUS, 2, "restore it from a backup"),
    "server.toml of another form": (change(SERVER_TOML, "v1/server", "v2/server"), STATUS, 2, "restore it"),
    "server.toml with a port of letters": (change(SERVER_TOML, "^port = .*$", 'port = "x"'), STATUS, 2, "restore it"),
    "server.toml with a host of digits": (change(SERVER_TOML, "^host = .*$", "host = 5"), STATUS, 2, "restore it"),
    "server.toml with half an id": (change(SERVER_TOML, '(?<=_id = ")..', "zz"), STATUS, 2, "restore it"),
    "metrics at no port": (None, ("server", "start", *OP, "--metrics-port", "70000"), 2, "a port of 70000"),
    "metrics where clients connect": (
        metrics_at("port"),
        ("server", "start", *OP, "--metrics-port", "18443"),
        2,
        "--metrics-port 18443: the port where clients connect",
    ),
    "metrics where they join, in the background": (
        metrics_at("join_port"),
        ("server", "start", "--detach", *OP, "--metrics-port", "18443"),
        2,
        "--metrics-port 18443: the port where clients join",
    ),
    "init for a name with a label of 64 signs": (None, (*INIT, "--name", "a" * 64), 2, "at most 63 letters and digits"),
    "rotating for a name with a label of 64 signs": (
        None,
        ("server", "rotate-certificate", *OP, "--name", f"{'a' * 64}.org"),
        2,
        "at most 63 letters and digits",
    ),
    "a roster onto a device": (None, ("server", "roster", *OP, "--output", "/dev/null"), 2, "/dev/null: is a device"),
    "a roster onto a link": (
        linked("out"),
        ("server", "roster", *OP, "--output", "out"),
        2,
        "out: is a link, which is",
    ),
    "a roster onto a pipe": (pipe("out"), ("server", "roster", "--close", *OP, "--output", "out"), 2, "out: is a pipe"),
    "an answer onto a link": (
        linked("out"),
        ("server", "invite", "--answer", "note.txt", "--output", "out", *OP),
        2,
        "out: is a link",
    ),
    "a request onto a link": (linked("out"), (*JOIN, NOBODY, "--request", "out"), 2, "--request out: is a link"),
    "a model onto a link to nothing": (
        linked("out", "nowhere"),
        ("client", "model", *ADA, "--output", "out"),
        2,
        "out: is a link",
    ),
    "metrics at port 0": (None, ("server", "start", *OP, "--metrics-port", "0"), 2, "a port of 0; expected 1 to"),
    "a log of another form": (None, STATUS, 2, r"\$FEDLEARN_LOG is xml; expected json or text"),
    # the coordinator's keys, certificates and books
    "the authority's key is readable": (readable("op/server/ca.key"), INVITE, 2, "0644 lets others read the key"),
    "the identity is gone": (gone("op/server/identity.key"), INVITE, 2, "identity.key: the key cannot be read"),
    "the identity is too short": (
        put("op/server/identity.key", b"short"),
        ("server", "roster", "--close", *OP),
        2,
        "identity.key: 5 bytes; expected the 32",
    ),
    "the authority is no certificate": (put("op/server/ca.crt", "x"), INVITE, 2, "ca.crt: .*certificate"),
    "the certificate is none": (put("op/server/server.crt", "x"), STATUS, 2, "server.crt: .*certificate"),
    "the authority's key is none": (
        put("op/server/ca.key", "x"),
        ("server", "rotate-certificate", *OP),
        2,
        "not a private key in PEM form; restore ca.key",
    ),
    "the certificate for no name": (
        None,
        ("server", "rotate-certificate", *OP, "--name", "a b"),
        2,
        "a b",
    ),
    "the book of members is none": (put("op/server/federation.db", "x" * 5000), INVITE, 2, "not a book of members"),
    # members and codes
    "nobody is invited": (None, ("server", "invite", *OP), 2, "no name; expected fedlearn server invite NAME"),
    "a name twice": (None, ("server", "invite", "Ben", "Ben", *OP), 2, "twice"),
    "a name of control characters": (None, ("server", "invite", "B\x1b[31m", *OP), 2, "name"),
    "an empty name": (None, ("server", "invite", "", *OP), 2, "name"),
    "the coordinator's name": (None, ("server", "invite", "Coordinator", *OP), 2, "Coordinator"),
    "a code for no time": (None, (*INVITE, "--days", "0"), 2, "--days 0: expected more than 0"),
    "a code for ever": (None, (*INVITE, "--days", "inf"), 2, "--days inf: expected more than 0 and at most 365"),
    "a code until no time": (None, (*INVITE, "--days", "nan"), 2, "--days nan"),
    "an answer to nowhere": (None, ("server", "invite", "--answer", "note.txt", *OP), 2, "give --output FILE"),
    "an answer to no request": (
        None,
        ("server", "invite", "--answer", "note.txt", "--output", "a", *OP),
        2,
        "note.txt: expected a request",
    ),
    "an answer to a request of other types": (
        put("request", '{"format": "fedlearn/v1/join-request", "client_id": 5}'),
        ("server", "invite", "--answer", "request", "--output", "a", *OP),
        2,
        "request: expected a request",
    ),
    "a roster while somebody is missing": (None, ("server", "roster", "--close", *OP), 2, "Ada"),
    "a file of an open roster": (None, ("server", "roster", "--output", "r", *OP), 2, "the roster is open"),
    "nobody of that name": (None, ("server", "revoke", "Zoe", *OP), 2, "Zoe: no such member; the names are Ada"),
    "a run without a server": (None, ("server", "run", "digits", *OP), 2, "the server is not up"),
    "no such run": (None, ("server", "stop", "r1", *OP), 2, "r1: no such run"),
    "nothing to stop": (None, ("server", "stop", *OP), 2, "not served; there is nothing to stop"),
    "no code": (None, JOIN, 2, "no code; expected fedlearn client join CODE"),
    "a word for a code": (None, (*JOIN, "please"), 2, "this is no invitation code"),
    "half a code": (None, (*JOIN, NOBODY[:40]), 2, "this is no invitation code"),
    "a code without end": (None, (*JOIN, "A" * 9000), 2, "this is no invitation code"),
    "a code of letters that are none": (None, (*JOIN, "ÄÖÜ" * 20), 2, "this is no invitation code"),
    "a code of a host with a label of 64 signs": (
        None,
        (*JOIN, Code(bytes(16), bytes(16), f"{'a' * 64}:1").to_text()),
        2,
        "this is no invitation code",
    ),
    "a code of a host with an empty label": (
        None,
        (*JOIN, Code(bytes(16), bytes(16), "a..b:1").to_text()),
        2,
        "this is no invitation code",
    ),
    "a deep home": (deep("ada"), ("client", "start", "--same-user", "--home", DEEP), 2, "longer than the 107 bytes"),
    "a code of nobody": (None, (*JOIN, NOBODY), 4, "127.0.0.1:1 does not answer"),
    "code and answer": (None, (*JOIN, NOBODY, "--answer", "note.txt"), 2, "--answer FILE goes without CODE"),
    "an answer without a request": (None, (*JOIN, "--answer", "note.txt"), 2, "request"),
    "a contact of two lines": (None, (*JOIN, NOBODY, "--contact", "a\nb", "--request", "r"), 2, "--contact: expected"),
    "a policy that is not there": (None, (*JOIN, NOBODY, "--policy", "none.toml", "--request", "r"), 2, "none.toml"),
    "a policy to begin with that is none": (
        None,
        (*JOIN, NOBODY, "--policy", "note.txt", "--request", "r"),
        2,
        "note.txt",
    ),
    # the holder's policy, key, roster, and home
    "no home": (None, ("client", "status", "--home", "nowhere"), 2, "no such folder; join first"),
    "no policy": (gone(POLICY), START, 2, "without a policy nothing is accepted"),
    "a policy that is no TOML": (policy("^.limits.$", "[limits"), START, 2, "expected a TOML file"),
    "a policy with a limit too few": (policy("^max_dimension.*$", ""), START, 2, "limits.max_dimension is missing"),
    "a policy with a key too many": (policy("^max_dim", "noise = 0\nmax_dim"), START, 2, "limits.noise is not a key"),
    "a policy that accepts everything": (policy("max_epsilon = 3.0", "max_epsilon = inf"), START, 2, "max_epsilon"),
    "a policy of epsilon below 0": (policy("max_epsilon = 3.0", "max_epsilon = -1.0"), START, 2, "max_epsilon"),
    "a policy for no survivors": (policy("^min_survivors = 3", "min_survivors = 0"), START, 2, "min_survivors"),
    "a policy of a mode that is none": (policy('"record-distributed"', '"dp"'), START, 2, '"dp" is not a mode'),
    "a policy of no unit": (policy('privacy_unit = "record"', 'privacy_unit = "row"'), START, 2, "privacy_unit"),
    "a policy of half an id": (policy('client_id = "..', 'client_id = "'), START, 2, "client_id.*expected 16 bytes"),
    "a policy of another roster": (policy('_sha256 = "..', '_sha256 = "00'), START, 3, "its SHA-256 is"),
    "no roster": (gone(ROSTER), START, 2, "roster.toml"),
    "a part that is none": (None, (*START, "--only", "both"), 2, "--only both: expected agent or node"),
    "half an acceptance": (None, (*START, "--accept-policy", "00" * 32), 2, "go together"),
    "an acceptance of other files": (
        None,
        (*START, "--accept-policy", "00" * 32, "--accept-roster", "00" * 32),
        3,
        "not the 0000.* that is accepted; nothing runs",
    ),
    "no answer to the question": (None, START, 2, "not accepted, so nothing runs"),
    "no roster of that name": (None, (*ACCEPT, "r.toml", "--sha256", "00" * 32), 2, "r.toml"),
    "a hash that is none": (None, (*ACCEPT, "sent.toml", "--sha256", "abc"), 2, "--sha256"),
    "the hash of something else": (None, (*ACCEPT, "sent.toml", "--sha256", "00" * 32), 3, "it is another roster"),
    "a roster that is none": (put("sent.toml", "x = 1"), ("client", "roster", "show", "sent.toml", *ADA), 2, "roster"),
    "a roster with an id of letters": (
        change("sent.toml", 'client_id = "..', 'client_id = "zz'),
        ("client", "roster", "show", "sent.toml", *ADA),
        2,
        "client_id",
    ),
    "a roster with one member twice": (
        change("sent.toml", "02" * 16, "01" * 16),
        ("client", "roster", "show", "sent.toml", *ADA),
        2,
        "twice|another",
    ),
    "a home that did not join": (None, ("client", "roster", "fetch", *ADA), 2, "join first"),
    "a home that joined nothing": (
        put("ada/client/server.toml", "["),
        ("client", "roster", "fetch", *ADA),
        2,
        "expected the file that fedlearn client join writes",
    ),
    "no model yet": (None, ("client", "model", "--output", "m", *ADA), 2, "no final model"),
    "a model over a file": (None, ("client", "model", "--output", "note.txt", *ADA), 2, "there already"),
    "a ledger that is none": (
        put("ada/client/ledger.db", "x" * 5000),
        ("client", "ledger", "show", *ADA),
        2,
        "ledger",
    ),
    "a certificate that is none": (None, ("verify", "note.txt", "note.txt"), 2, "expected a certificate"),
}


def assert_is_one_sentence(said: str, expected: str) -> None:
    lines = said.replace("[y/N]: ", "[y/N]:\n").splitlines()
    assert "Traceback" not in said
    assert lines, "nothing was said"
    assert lines[-1].startswith("fedlearn: ")
    assert sum(line.startswith("fedlearn: ") for line in lines) == 1
    assert re.search(expected, lines[-1]), lines[-1]
    assert lines[-1].isprintable()


def test_there_are_enough_of_them() -> None:
    assert len(COMMANDS) + len(AGENTS) + len(SOCKET_BYTES) + len(MESSAGES) + len(REQUESTS) >= 60


@pytest.mark.parametrize("case", COMMANDS)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words, code, sentence = COMMANDS[case]
    if spoil is not None:
        spoil(place)
    if "FEDLEARN_LOG" in sentence:
        monkeypatch.setenv("FEDLEARN_LOG", "xml")
    before = contents(place)
    monkeypatch.setattr(sys, "argv", ["fedlearn", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        main()
    assert_is_one_sentence(capsys.readouterr().err, sentence)
    assert ended.value.code == code
    assert contents(place) == before


# name: (what is done to a holder's files, exit code, what the agent says before it ends)
AGENTS: dict[str, tuple[Change, int, str]] = {
    "a key of 31 bytes": (put("ada/client/identity.key", bytes(31)), 2, "31 bytes; expected the 32"),
    "a key that others may read": (readable("ada/client/identity.key"), 2, "0644 lets others read the key"),
    "no key": (gone("ada/client/identity.key"), 2, "the key cannot be read"),
    "a key that is not the roster's": (put("ada/client/identity.key", bytes(32)), 3, "somebody else would be believed"),
    "a socket with a long path": (policy('"agent.sock"', f'"{"s" * 120}"'), 2, "longer than the 107 bytes"),
    "a socket in no folder": (policy('"agent.sock"', '"none/agent.sock"'), 2, "cannot be listened at"),
    "a ledger that is none": (put("ada/client/ledger.db", "x" * 5000), 3, "ledger"),
}


@pytest.mark.parametrize("case", AGENTS)
def test_an_agent_that_cannot_keep_its_word_says_why_and_does_not_start(
    case: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, code, sentence = AGENTS[case]
    spoil(place)
    before = contents(place)
    assert serve_agent([str(place / POLICY), "--same-user"]) == code
    errors = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (error,) = [line for line in errors if line["level"] == "error"]
    assert re.search(sentence, error["message"])
    assert "exception" not in error
    kept = {path: content for path, content in contents(place).items() if not path.endswith((".db", ".count"))}
    assert kept == {path: content for path, content in before.items() if path in kept}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedAgent]:
    made = DeployedAgent(write_policy(tmp_path_factory.mktemp("ada")))
    yield made
    made.close()


SESSION = "0123456789abcdef" * 2
HEADER = {"attempt": 0, "round": 1, "session": SESSION, "stage": "advertise", "version": 1}


def framed(header: bytes, body: bytes = b"", size: int | None = None) -> bytes:
    return len(header).to_bytes(4, "big") + header + (len(body) if size is None else size).to_bytes(8, "big") + body


def header(**fields: object) -> bytes:
    return json.dumps({**HEADER, **fields}, sort_keys=True, separators=(",", ":")).encode()


SOCKET_BYTES = {
    "nothing": b"",
    "half a number": b"\0\0",
    "a line of HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "another client": (5).to_bytes(4, "big") + framed(header()),
    "a header without end": bytes(4) + b"\xff" * 64,
    "an empty header": bytes(4) + framed(b""),
    "a header that is no JSON": bytes(4) + framed(b"{" * 200),
    "a body of 2^63 bytes": bytes(4) + framed(header(), size=1 << 63),
    "a body above the cap": bytes(4) + framed(header(), size=1 << 31),
    "a body that does not come": bytes(4) + framed(header(), b"x", size=100),
    "a stage that is none": bytes(4) + framed(header(stage="gradient")),
    "a session that is a path": bytes(4) + framed(header(session="../../../../../../../../etc/pass")),
    "a round below 0": bytes(4) + framed(header(round=-1)),
    "an attempt of letters": bytes(4) + framed(header(attempt="0")),
    "another version": bytes(4) + framed(header(version=2)),
    "a header that is not canonical": bytes(4) + framed(json.dumps(HEADER).encode()),
}


@pytest.mark.parametrize("case", SOCKET_BYTES)
def test_bytes_that_are_no_frame_get_the_constant_refusal_and_the_agent_goes_on(
    case: str, agent: DeployedAgent
) -> None:
    with listen(agent, allow_same_user=True):
        for data in (SOCKET_BYTES[case], bytes(4) + framed(header(stage="identify"), bytes(16))):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                peer.settimeout(10)
                peer.connect(str(agent.policy.socket_path))
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
                try:
                    reply = b"".join(iter(lambda peer=peer: peer.recv(4096), b""))
                except ConnectionResetError:  # it was not read to its end
                    reply = len(REFUSAL).to_bytes(8, "big") + REFUSAL
            if data == SOCKET_BYTES[case]:
                assert reply == len(REFUSAL).to_bytes(8, "big") + REFUSAL
    assert reply[8:24] == client_id(0)


MESSAGES = {
    "a stage before the first one": ("share", b""),
    "a vector that nobody agreed to": ("masked", b"x" * 3000),
    "shares without an attempt": ("unmask", bytes(80)),
    "survivors without an attempt": ("consistency", b"\xf0"),
    "a model at the end of nothing": ("attest", bytes(100)),
    "no context": ("advertise", b""),
    "half a context": ("advertise", bytes(100)),
    "a context of zeros": ("advertise", bytes(209) + (2).to_bytes(4, "big") + b"{}"),
    "a configuration that is no JSON": ("advertise", bytes(209) + (3).to_bytes(4, "big") + b"[[["),
    "a configuration without end": ("advertise", bytes(209) + (1 << 31).to_bytes(4, "big") + b"{}"),
    "a configuration that nests": ("advertise", bytes(209) + (100_000).to_bytes(4, "big") + b"[" * 100_000),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_that_fit_nothing_get_the_constant_refusal_signed(case: str, agent: DeployedAgent) -> None:
    stage, body = MESSAGES[case]
    reply = agent.handle(0, stage, Frame(stage, SESSION, 1, 0, body).to_bytes())
    assert reply[: len(CONSTANT)] == CONSTANT
    assert len(reply) == len(CONSTANT) + 64
    assert not agent.ledger.events("digits")


REQUESTS: dict[str, object] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": [],
    "a number": 5,
    "nests": b"[" * 8000,
    "too long": b"x" * 9000,
    "no fields": {},
    "fields of other types": {"nonce": 5, "proof": None, "signature": []},
    "hex of another length": {"nonce": "00", "proof": "00", "signature": "00"},
    "a nonce that nobody gave": {"nonce": "00" * 32, "proof": "00" * 32, "signature": "00" * 64},
}


@pytest.mark.parametrize("path", ["/join", "/roster"])
@pytest.mark.parametrize("case", REQUESTS)
def test_whatever_is_sent_to_the_endpoint_for_joining_is_refused_alike(case: str, path: str, place: Path) -> None:
    home = ServerHome.load(place / "op")
    federation = Federation(home.database_path)
    body = REQUESTS[case]

    async def post() -> httpx.Response:
        served = httpx.ASGITransport(join_app(home, federation))
        async with httpx.AsyncClient(transport=served, base_url="https://localhost") as client:
            return await client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))

    answer = asyncio.run(post())
    assert (answer.status_code, answer.content) == (403, b"refused")
    assert federation.members()[0].applicant is None
    federation.close()
