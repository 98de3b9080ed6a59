"""A data holder joins a federation: keys of its own, a proof of its code, and what the coordinator answers.

Below the home's `client/`: identity.key (Ed25519 seed), node.key (Flower's, OpenSSH), ca.crt, client.toml (the policy),
server.toml (what was joined). The keys are made first and kept: a join whose answer was lost is tried again with them.
"""

import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import tomli_w

from fedlearn.bounded import read_json, read_whole
from fedlearn.crypto.certificates import Certificate, new_node_key, node_public_key
from fedlearn.crypto.key_files import read_secret, read_signing_key
from fedlearn.crypto.signatures import SigningKey
from fedlearn.enrolment.invitation import (
    NO_NONCE,
    PIN_BYTES,
    Applicant,
    Code,
    answer_proof,
    applicant_proof,
    is_address,
    roster_request,
    verifier_of,
)
from fedlearn.enrolment.join_client import JoinClient, fetch_authority
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.host.durable import check_replaceable, write_whole
from fedlearn.host.shipped import shipped_root
from fedlearn.policy.policy_file import with_value
from fedlearn.policy.roster import Roster
from fedlearn.toml import read_toml

__all__ = ["ANSWER_FORMAT", "REQUEST_FORMAT", "Joined", "accept_answer", "fetch_roster", "join", "write_request"]

REQUEST_FORMAT: Final = "fedlearn/v1/join-request"
ANSWER_FORMAT: Final = "fedlearn/v1/join-answer"

_FORMAT: Final = "fedlearn/v1/joined"
_FIELDS: Final = {"format", "name", "address", "join_address", "client_id"}
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{32}")
_MOST_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Joined:
    """A holder's folder after it joined: `name` is its own in the roster, `address` the SuperLink's."""

    folder: Path
    name: str
    address: str
    join_address: str
    client_id: bytes

    @classmethod
    def load(cls, home: Path) -> Self:
        """What `join` left in a home.

        Raises:
            ConfigError: nothing was joined, or the file is damaged.
        """
        path = home / "client" / "server.toml"
        try:
            values = read_toml(path)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; join first: fedlearn client join CODE") from None
        except ConfigError:
            values = {}
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        if (
            set(values) != _FIELDS
            or values["format"] != _FORMAT
            or not _HEXADECIMAL.fullmatch(str(values["client_id"]))
            or not all(isinstance(values[name], str) for name in values)
            or not is_address(values["address"])
            or not is_address(values["join_address"])
        ):
            raise ConfigError(f"{path}: expected the file that fedlearn client join writes; restore it from a backup")
        client_id = bytes.fromhex(values["client_id"])
        return cls(path.parent, values["name"], values["address"], values["join_address"], client_id)

    @property
    def identity(self) -> SigningKey:
        """This holder's long-term key."""
        return read_signing_key(self.folder / "identity.key")

    @property
    def authority(self) -> Certificate:
        """The authority that every server of this federation must show."""
        return Certificate.read(self.folder / "ca.crt")


def join(home: Path, code_text: str, *, contact: str = "", policy: Path | None = None) -> Joined:
    """Join online: check the authority, then prove the code.

    `policy` is a policy file to begin with, by default the shipped example; its client id is made this holder's.

    Guarantees:
        to a server whose authority is not the code's nothing is sent but a request for that authority, and nothing is
            written for it;
        the secret of the code leaves in no form from which it could be had.

    Raises:
        ConfigError: no code, joined already, or a file cannot be used.
        RefusedError: another authority, or the code is not accepted.
        RunFailedError: nobody answers.
    """
    code, template = Code.from_text(code_text), _template(home, contact, policy)
    authority = fetch_authority(code.address, code.pin)
    folder = _prepared(home, template)
    applicant, identity = _applicant(folder, contact)
    client = JoinClient(code.address, authority)
    answer = client.join(lambda nonce: _signed(code, applicant, identity, nonce))
    return _keep(folder, applicant, answer, authority, code)


def write_request(home: Path, code_text: str, file: Path, *, contact: str = "", policy: Path | None = None) -> None:
    """The offline way, first half: what `join` would send, in a file for the operator.

    Raises:
        ConfigError: as `join`, or the file cannot be written.
    """
    code = Code.from_text(code_text)
    try:
        check_replaceable(file)
    except OSError as error:
        raise ConfigError(f"--request {file}: {error.strerror}") from None
    folder = _prepared(home, _template(home, contact, policy))
    applicant, identity = _applicant(folder, contact)
    fields = {"format": REQUEST_FORMAT, **_signed(code, applicant, identity, NO_NONCE)}
    _write(folder / "code", code.to_text().encode(), mode=0o600)  # the answer is checked with it
    _write(file, json.dumps(fields, indent=2, allow_nan=False).encode() + b"\n", mode=0o600)


def accept_answer(home: Path, file: Path) -> Joined:
    """The offline way, second half: the operator's answer to the request, checked against the code.

    Raises:
        ConfigError: no request was made, or the file is no answer.
        RefusedError: the answer is not from whoever gave out the code.
    """
    folder = home / "client"
    try:
        code = Code.from_text((folder / "code").read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"{folder}: no request was made here; fedlearn client join CODE --request FILE first"
        ) from None
    try:
        fields = read_json(read_whole(file, most=_MOST_BYTES), what="it")
        answer, proof = fields["answer"], bytes.fromhex(fields["proof"])
        expected = answer_proof(verifier_of(code.secret, code.pin), code.pin, answer.encode())
        right = fields["format"] == ANSWER_FORMAT
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise ConfigError(f"{file}: expected an answer, as fedlearn server invite --answer writes it")
    if not hmac.compare_digest(expected, proof):
        raise RefusedError(f"{file}: not an answer of whoever gave out the code; nothing was joined")
    values = read_json(answer.encode(), what=f"{file}: the answer")
    authority = Certificate.of(values["authority"].encode())
    if authority.fingerprint[:PIN_BYTES] != code.pin:
        raise RefusedError(f"{file}: its authority is not that of the code; nothing was joined")
    applicant, _ = _applicant(folder, "")
    joined = _keep(folder, applicant, values, authority, code)
    (folder / "code").unlink()
    return joined


def fetch_roster(home: Path) -> tuple[Path, Roster] | None:
    """Fetch the roster that was closed last into a file beside the policy; None while it is open.

    It is accepted by nobody but the holder: `roster_acceptance.accept_roster`.

    Raises:
        ConfigError: nothing was joined, or what came is no roster.
        RefusedError: the coordinator does not know this holder.
        RunFailedError: nobody answers.
    """
    joined = Joined.load(home)
    pin = joined.authority.fingerprint[:PIN_BYTES]

    def signed(nonce: bytes) -> Mapping[str, str]:
        signature = joined.identity.sign("join", roster_request(pin, joined.client_id, nonce))
        return {"client_id": joined.client_id.hex(), "nonce": nonce.hex(), "signature": signature.hex()}

    content = JoinClient(joined.join_address, joined.authority).roster(signed)
    if content is None:
        return None
    roster = Roster.from_bytes(content)
    path = joined.folder / "roster.proposed.toml"
    _write(path, content, mode=0o600)
    return path, roster


def _template(home: Path, contact: str, policy: Path | None) -> bytes:
    """A policy to begin with, for a new client id; all else that a person may have got wrong is checked first."""
    folder = home / "client"
    if (folder / "server.toml").exists():
        joined = Joined.load(home)
        raise ConfigError(f"{folder}: {joined.name} has joined already; another holder needs another --home")
    if not contact.isprintable():
        raise ConfigError("--contact: expected printable signs, such as a telephone number")
    place = policy or shipped_root() / "clients" / "client.example.toml"
    try:
        return with_value(place.read_bytes(), "holder", "client_id", secrets.token_hex(16), place=place)
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; nothing was joined") from None


def _prepared(home: Path, template: bytes) -> Path:
    """The holder's folder with keys and a policy; what is there already stays."""
    folder = home / "client"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        if not (folder / "identity.key").exists():
            write_whole(folder / "identity.key", os.urandom(32), mode=0o600)
        if not (folder / "node.key").exists():
            write_whole(folder / "node.key", new_node_key(), mode=0o600)
        if not (folder / "client.toml").exists():
            write_whole(folder / "client.toml", template, mode=0o600)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; nothing was joined") from None
    return folder


def _applicant(folder: Path, contact: str) -> tuple[Applicant, SigningKey]:
    """Who joins, by the files in its folder."""
    identity = read_signing_key(folder / "identity.key")
    node_key = node_public_key(read_secret(folder / "node.key"))
    path = folder / "client.toml"
    try:
        client_id = read_toml(path)["holder"]["client_id"]
        right = _HEXADECIMAL.fullmatch(client_id) is not None
    except (ConfigError, KeyError, TypeError, OSError):
        right = False
    if not right:
        raise ConfigError(f"{path}: expected holder.client_id of 32 hexadecimal digits")
    return Applicant(bytes.fromhex(client_id), identity.public, node_key, contact), identity


def _signed(code: Code, applicant: Applicant, identity: SigningKey, nonce: bytes) -> dict[str, str]:
    """What the endpoint's `/join` takes."""
    verifier = verifier_of(code.secret, code.pin)
    proof, signature = applicant_proof(verifier, applicant, identity, pin=code.pin, nonce=nonce)
    return {
        "client_id": applicant.client_id.hex(),
        "key": applicant.key.hex(),
        "node_key": applicant.node_key.decode("ascii"),
        "contact": applicant.contact,
        "nonce": nonce.hex(),
        "proof": proof.hex(),
        "signature": signature.hex(),
    }


def _keep(folder: Path, applicant: Applicant, answer: Mapping[str, Any], authority: Certificate, code: Code) -> Joined:
    """Write down what was joined; server.toml last, for its presence says that all is there."""
    name, address = answer.get("name"), answer.get("address")
    if not isinstance(name, str) or not isinstance(address, str) or not is_address(address) or not name.isprintable():
        raise ConfigError(f"{code.address} answers what no coordinator answers; is its fedlearn of another version?")
    values = {
        "format": _FORMAT,
        "name": name,
        "address": address,
        "join_address": code.address,
        "client_id": applicant.client_id.hex(),
    }
    _write(folder / "ca.crt", authority.pem, mode=0o644)
    _write(folder / "server.toml", tomli_w.dumps(values).encode(), mode=0o600)
    return Joined(folder, name, address, code.address, applicant.client_id)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    try:
        write_whole(path, content, mode=mode)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
