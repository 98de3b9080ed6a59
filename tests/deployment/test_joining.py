"""Joining over a real endpoint: the code lets in once; a guess, a replay, a late one, somebody in between do not."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from server_files import NAMES, invited, new_home

from fedlearn.cli import main as cli_main
from fedlearn.crypto.certificates import new_node_key, node_public_key
from fedlearn.crypto.signatures import SigningKey
from fedlearn.enrolment import inviting, joining
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.invitation import Applicant, Code, applicant_proof, verifier_of
from fedlearn.enrolment.join_endpoint import JoinEndpoint, join_app
from fedlearn.errors import ConfigError, RefusedError, RunFailedError
from fedlearn.policy.roster import Roster


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path / "operator")


@pytest.fixture
def federation(home):
    book = Federation(home.database_path)
    yield book
    book.close()


@pytest.fixture
def endpoint(home, federation):
    served = JoinEndpoint(home, federation)
    yield served
    served.close()


@pytest.fixture
def ask(home, federation):
    """What somebody gets who asks the application by hand, without TLS."""
    with TestClient(join_app(home, federation)) as client:

        def asked(path, fields):
            body = fields if isinstance(fields, bytes) else json.dumps(fields)
            answer = client.post(path, content=body)
            return answer.status_code, answer.content

        yield asked


def exchange(home, path, fields):
    """What somebody gets who asks the endpoint by hand."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=home.authority.certificate.pem.decode())
    connection = http.client.HTTPSConnection("127.0.0.1", home.join_port, context=context, timeout=10)
    try:
        connection.request("POST", path, fields if isinstance(fields, bytes) else json.dumps(fields))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def application(ask, code, *, applicant=None, key=None):
    """The fields of a join; everything about it is right unless it is said otherwise."""
    key = key or SigningKey(os.urandom(32))
    applicant = applicant or Applicant(os.urandom(16), key.public, node_public_key(new_node_key()), "")
    nonce = bytes.fromhex(ask("/nonce", {})[1].decode())
    verifier = verifier_of(code.secret, code.pin)
    proof, signature = applicant_proof(verifier, applicant, key, pin=code.pin, nonce=nonce)
    return {
        "client_id": applicant.client_id.hex(),
        "key": applicant.key.hex(),
        "node_key": applicant.node_key.decode(),
        "contact": applicant.contact,
        "nonce": nonce.hex(),
        "proof": proof.hex(),
        "signature": signature.hex(),
    }


def test_four_join_and_are_given_one_roster(home, federation, endpoint, tmp_path):
    for invitation in invited(home, *NAMES):
        joined = joining.join(tmp_path / invitation.name, invitation.code, contact=f"{invitation.name}@example.org")
        assert (joined.name, joined.address) == (invitation.name, home.superlink_address)
    assert all(joining.fetch_roster(tmp_path / name) is None for name in NAMES)
    closed = federation.close_roster(home.entry)
    fetched = [joining.fetch_roster(tmp_path / name) for name in NAMES]
    assert [found[1].content for found in fetched if found] == [closed.content] * 4
    assert closed.coordinator.key == home.identity.public
    assert {entry.name: entry.contact for entry in closed.members}["Ada"] == "Ada@example.org"
    for name in NAMES:
        mine = joining.Joined.load(tmp_path / name)
        assert closed.keys[mine.client_id] == mine.identity.public


def test_nobody_is_awaited_once_all_have_the_roster(home, federation, endpoint, tmp_path):
    assert not federation.is_awaited()
    (invitation,) = invited(home, "Ada")
    assert federation.is_awaited()
    joining.join(tmp_path / "a", invitation.code)
    assert federation.is_awaited()
    federation.close_roster(home.entry)
    assert federation.is_awaited()
    joining.fetch_roster(tmp_path / "a")
    assert not federation.is_awaited()


def test_a_holders_files_are_its_own(home, endpoint, tmp_path):
    (invitation,) = invited(home, "Ada")
    folder = joining.join(tmp_path / "a", invitation.code).folder
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes.pop("ca.crt") == 0o644
    assert modes.pop("client") == 0o700
    assert modes == dict.fromkeys(("client.toml", "identity.key", "node.key", "server.toml"), 0o600)
    assert len((folder / "identity.key").read_bytes()) == 32
    assert b"BEGIN OPENSSH PRIVATE KEY" in (folder / "node.key").read_bytes()
    client_id = joining.Joined.load(tmp_path / "a").client_id.hex()
    assert f'client_id = "{client_id}"' in (folder / "client.toml").read_text()


def test_a_code_lets_in_one_party(home, endpoint, tmp_path):
    (invitation,) = invited(home, "Ada")
    joining.join(tmp_path / "a", invitation.code)
    with pytest.raises(RefusedError, match="used, expired or withdrawn"):
        joining.join(tmp_path / "b", invitation.code)
    with pytest.raises(ConfigError, match="Ada has joined already"):
        joining.join(tmp_path / "a", invitation.code)


def test_whoever_did_not_get_the_answer_may_ask_again(home, endpoint, tmp_path):
    (invitation,) = invited(home, "Ada")
    first = joining.join(tmp_path / "a", invitation.code)
    (first.folder / "server.toml").unlink()  # as if the connection had ended before the answer
    assert joining.join(tmp_path / "a", invitation.code) == first


def test_a_late_code_is_refused(home, endpoint, tmp_path):
    (invitation,) = invited(home, "Ada", days=1e-9)
    with pytest.raises(RefusedError, match="used, expired or withdrawn"):
        joining.join(tmp_path / "a", invitation.code)


def test_a_new_code_and_a_withdrawal_void_the_old_one(home, federation, endpoint, tmp_path):
    (old,), (new,) = invited(home, "Ada"), invited(home, "Ada")
    with pytest.raises(RefusedError):
        joining.join(tmp_path / "a", old.code)
    federation.revoke("Ada")
    with pytest.raises(RefusedError):
        joining.join(tmp_path / "a", new.code)


def test_guesses_are_refused_alike_and_then_not_heard(home, federation, ask, tmp_path):
    (invitation,) = invited(home, "Ada")
    code = Code.from_text(invitation.code)
    guess = Code(os.urandom(16), code.pin, code.address)
    assert {ask("/join", application(ask, guess)) for _ in range(5)} == {(403, b"refused")}
    right = application(ask, code)
    assert ask("/join", right) == (403, b"refused")  # even what is right, after five wrong ones
    assert federation.members()[0].applicant is None


def test_noise_is_no_guess_and_silences_nobody(home, federation, ask):
    (invitation,) = invited(home, "Ada")
    right = application(ask, Code.from_text(invitation.code))
    noise = [b"{", b"x" * 9000, b"[]", {}, right | {"nonce": "00" * 32}, right | {"nonce": "ff" * 32}] * 3
    assert {ask(path, fields) for path in ("/join", "/roster") for fields in noise} == {(403, b"refused")}
    assert ask("/join", right)[0] == 200


def test_who_asks_for_many_nonces_takes_away_nobodys(home, federation, ask):
    (invitation,) = invited(home, "Ada")
    right = application(ask, Code.from_text(invitation.code))
    given = {ask("/nonce", {})[1] for _ in range(1100)}
    assert len(given) == 1100
    assert ask("/join", right)[0] == 200


def test_a_nonce_is_good_for_a_minute(home, federation):
    (invitation,) = invited(home, "Ada")
    now = [1000.0]
    with TestClient(join_app(home, federation, clock=lambda: now[0])) as client:

        def asked(path, fields):
            answer = client.post(path, content=json.dumps(fields))
            return answer.status_code, answer.content

        late = application(asked, Code.from_text(invitation.code))
        now[0] += 60
        assert asked("/join", late) == (403, b"refused")
        soon = application(asked, Code.from_text(invitation.code))
        now[0] += 59
        assert asked("/join", soon)[0] == 200


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "00" * 32},
        {"client_id": "00" * 16},
        {"key": SigningKey(bytes(32)).public.hex()},
        {"node_key": node_public_key(new_node_key()).decode()},
        {"node_key": "ssh-ed25519 AAAA"},
        {"contact": "somebody else"},
        {"proof": "00" * 32},
        {"signature": "00" * 64},
        {"key": "zz"},
        {"contact": 5},
        {"contact": "two\nlines"},
    ],
    ids=lambda change: f"{next(iter(change))} {len(str(change))}",
)
def test_whatever_is_not_proven_is_refused(home, federation, ask, change):
    (invitation,) = invited(home, "Ada")
    fields = application(ask, Code.from_text(invitation.code)) | change
    assert ask("/join", fields) == (403, b"refused")
    assert federation.members()[0].applicant is None


def test_what_was_recorded_cannot_be_played_again(home, federation, ask):
    (invitation,) = invited(home, "Ada")
    fields = application(ask, Code.from_text(invitation.code))
    assert ask("/join", fields)[0] == 200
    assert ask("/join", fields) == (403, b"refused")


def test_a_proof_is_for_one_key_alone(home, federation, ask):
    """Somebody who reads along puts a key of his own in the place of the holder's."""
    (invitation,) = invited(home, "Ada")
    code, own = Code.from_text(invitation.code), SigningKey(os.urandom(32))
    fields = application(ask, code)
    nonce = bytes.fromhex(fields["nonce"])
    thief = Applicant(bytes.fromhex(fields["client_id"]), own.public, fields["node_key"].encode(), "")
    signature = applicant_proof(bytes(32), thief, own, pin=code.pin, nonce=nonce)[1]
    swapped = fields | {"key": own.public.hex(), "signature": signature.hex()}
    assert ask("/join", swapped) == (403, b"refused")


def test_keys_of_another_member_or_of_a_revoked_one_are_refused(home, federation, ask):
    ada, ben = invited(home, "Ada", "Ben")
    key = SigningKey(os.urandom(32))
    applicant = Applicant(os.urandom(16), key.public, node_public_key(new_node_key()), "")
    assert ask("/join", application(ask, Code.from_text(ada.code), applicant=applicant, key=key))[0] == 200
    again = application(ask, Code.from_text(ben.code), applicant=applicant, key=key)
    assert ask("/join", again) == (403, b"refused")
    federation.revoke("Ada")
    (new,) = invited(home, "Ada")
    burnt = application(ask, Code.from_text(new.code), applicant=applicant, key=key)
    assert ask("/join", burnt) == (403, b"refused")
    assert ask("/join", application(ask, Code.from_text(new.code)))[0] == 200


class Between:
    """Listens in the endpoint's place with an authority of its own, and keeps what it is told."""

    status = b"200 OK"

    def __init__(self, home, port):
        self.heard = b""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home.certificate_path, home.key_path)
        self._authority = home.authority_path.read_bytes()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._context = context
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with contextlib.suppress(ssl.SSLError):
                    self._answer(self._context.wrap_socket(connection, server_side=True))

    def _answer(self, tls):
        with tls:
            self.heard += tls.recv(65536)
            size = len(self._authority)
            tls.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (self.status, size, self._authority))
            while part := tls.recv(65536):
                self.heard += part

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def test_somebody_in_between_is_told_nothing(home, tmp_path):
    (invitation,) = invited(home, "Ada")
    between = Between(new_home(tmp_path / "stranger"), home.join_port)
    with pytest.raises(RefusedError, match="shows another authority; nothing was told to it"):
        joining.join(tmp_path / "a", invitation.code)
    between.close()
    lines = between.heard.split(b"\r\n")
    assert lines[0] == b"GET /authority HTTP/1.1"
    assert {line.partition(b":")[0] for line in lines[1:] if line} <= {b"Host", b"Accept-Encoding"}
    assert not (tmp_path / "a" / "client" / "server.toml").exists()


def test_a_server_that_is_too_busy_to_show_its_authority_is_no_alarm(home, tmp_path, monkeypatch):
    (invitation,) = invited(home, "Ada")
    between = Between(home, home.join_port)
    between._authority = b"Service Unavailable"
    monkeypatch.setattr(between, "status", b"503 Service Unavailable")
    with pytest.raises(RunFailedError, match=r"answers, and not to the question \(HTTP status 503\); try again"):
        joining.join(tmp_path / "a", invitation.code)
    between.close()


def test_somebody_in_between_who_shows_the_right_authority_has_no_certificate_of_it(home, tmp_path):
    (invitation,) = invited(home, "Ada")
    stranger = new_home(tmp_path / "stranger")
    stranger.authority_path.write_bytes(home.authority_path.read_bytes())
    between = Between(stranger, home.join_port)
    with pytest.raises(RunFailedError, match="shows a certificate that is not good for it"):
        joining.join(tmp_path / "a", invitation.code)
    between.close()
    assert b"proof" not in between.heard


def test_the_roster_is_for_members(home, federation, endpoint, tmp_path):
    ada, ben = invited(home, "Ada", "Ben")
    joining.join(tmp_path / "a", ada.code)
    joining.join(tmp_path / "b", ben.code)
    federation.close_roster(home.entry)
    assert exchange(home, "/roster", {"client_id": "00" * 16, "nonce": "00" * 32, "signature": "00" * 64})[0] == 403
    federation.revoke("Ben")
    with pytest.raises(RefusedError, match="does not know this holder"):
        joining.fetch_roster(tmp_path / "b")


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/join/x"])
def test_there_is_nothing_else(ask, path):
    assert ask(path, {}) == (403, b"refused")


def test_the_database_does_not_show_the_codes(home, federation):
    (invitation,) = invited(home, "Ada")
    code = Code.from_text(invitation.code)
    kept = b"".join(path.read_bytes() for path in home.folder.iterdir() if path.is_file())
    assert code.secret not in kept
    assert invitation.code.encode() not in kept
    assert "verifier" not in repr(federation.members()[0])


def test_offline_a_request_goes_out_and_an_answer_comes_in(home, federation, tmp_path):
    (invitation,) = invited(home, "Ada")
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    joining.write_request(tmp_path / "a", invitation.code, request, contact="a@example.org")
    assert inviting.answer_request(home, federation, request, answer) == "Ada"
    joined = joining.accept_answer(tmp_path / "a", answer)
    assert (joined.name, joined.address) == ("Ada", home.superlink_address)
    assert joined.authority.fingerprint == home.authority.certificate.fingerprint
    assert federation.close_roster(home.entry).keys == {joined.client_id: joined.identity.public}
    assert not (joined.folder / "code").exists()


def test_an_answer_that_was_changed_is_refused(home, federation, tmp_path):
    (invitation,) = invited(home, "Ada")
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    joining.write_request(tmp_path / "a", invitation.code, request)
    inviting.answer_request(home, federation, request, answer)
    changed = answer.read_text().replace("127.0.0.1", "127.6.6.6")
    answer.write_text(changed)
    with pytest.raises(RefusedError, match="not an answer of whoever gave out the code"):
        joining.accept_answer(tmp_path / "a", answer)
    assert not (tmp_path / "a" / "client" / "server.toml").exists()


def test_a_request_of_somebody_without_a_code_is_refused(home, federation, tmp_path):
    (invitation,) = invited(home, "Ada")
    code = Code.from_text(invitation.code)
    guess = Code(os.urandom(16), code.pin, code.address).to_text()
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    joining.write_request(tmp_path / "a", guess, request)
    with pytest.raises(RefusedError, match="nobody was let in"):
        inviting.answer_request(home, federation, request, answer)
    assert not answer.exists()


def test_an_offline_request_is_no_use_online(home, ask, tmp_path):
    (invitation,) = invited(home, "Ada")
    request = tmp_path / "request.json"
    joining.write_request(tmp_path / "a", invitation.code, request)
    assert ask("/join", json.loads(request.read_text())) == (403, b"refused")


def test_nobody_there_is_one_sentence(home, tmp_path):
    (invitation,) = invited(home, "Ada")
    with pytest.raises(RunFailedError, match=f"127.0.0.1:{home.join_port} does not answer"):
        joining.join(tmp_path / "a", invitation.code)


def test_a_taken_port_is_one_sentence(home, federation):
    with socket.create_server(("127.0.0.1", home.join_port)), pytest.raises(ConfigError, match="cannot be listened at"):
        JoinEndpoint(home, federation)


@pytest.mark.parametrize(
    "text", ["", "A", "not a code!", "0189" * 20, "A" * 700, "MFRGG" * 12, Code(bytes(16), bytes(16), "x").to_text()]
)
def test_what_is_no_code_is_one_sentence(text, tmp_path):
    with pytest.raises(ConfigError, match="this is no invitation code"):
        joining.join(tmp_path / "a", text)
    assert not (tmp_path / "a").exists()


def test_a_code_may_be_typed_in_any_way():
    code = Code(os.urandom(16), os.urandom(16), "host.example.org:8444")
    text = code.to_text().lower()
    typed = " ".join(text[at : at + 4] for at in range(0, len(text), 4)) + "\n"
    assert Code.from_text(typed) == code
    assert "secret" not in repr(code)


def test_the_commands_say_it_all(home, endpoint, federation, tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["fedlearn", *map(str, words)])
        try:
            cli_main()
        except SystemExit as ended:
            return int(ended.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    operator = home.folder.parent
    code, out, _ = run("server", "invite", "Ada", "--home", operator)
    assert code == 0
    name, text = out.split()
    assert name == "Ada"
    code, out, _ = run("client", "join", text, "--home", tmp_path / "a")
    assert code == 0
    assert "joined as Ada" in out
    code, _, err = run("client", "roster", "fetch", "--home", tmp_path / "a")
    assert code == 2
    assert "not closed yet" in err
    code, out, _ = run("server", "roster", "--close", "--home", operator, "--output", tmp_path / "roster.toml")
    sha256 = Roster.from_bytes((tmp_path / "roster.toml").read_bytes()).sha256.hex()
    assert sha256 in out
    code, out, _ = run("client", "roster", "fetch", "--home", tmp_path / "a")
    assert sha256 in out
    proposed = Path(tmp_path / "a" / "client" / "roster.proposed.toml")
    code, out, err = run(
        "client", "roster", "accept", proposed, "--sha256", sha256, "--confirmed", "all", "--home", tmp_path / "a"
    )
    assert code == 0, err
