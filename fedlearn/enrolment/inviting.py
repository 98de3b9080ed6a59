"""What an operator does about members: codes, the offline way in, and the roster's file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.bounded import read_json, read_whole
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.invitation import NO_NONCE, Code, answer_proof
from fedlearn.enrolment.join_endpoint import read_applicant
from fedlearn.enrolment.joining import ANSWER_FORMAT, REQUEST_FORMAT
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.host.durable import write_whole

__all__ = ["Invitation", "answer_request", "invite"]

_MOST_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Invitation:
    """A name and the code that was made for it; the code is kept nowhere."""

    name: str
    code: str


def invite(home: ServerHome, federation: Federation, names: Sequence[str], *, days: float) -> list[Invitation]:
    """A one-time code for each name.

    Raises:
        ConfigError: no name, one that cannot be or has joined, or a time that cannot be.
    """
    if not names:
        raise ConfigError("no name; expected fedlearn server invite NAME ..., a name for each data holder")
    if not 0 < days <= 365:
        raise ConfigError(f"--days {days:g}: expected more than 0 and at most 365")
    secrets = federation.invite(names, pin=home.pin, days=days)
    codes = [Code(secret, home.pin, home.join_address).to_text() for secret in secrets]
    return [Invitation(name, code) for name, code in zip(names, codes, strict=True)]


def answer_request(home: ServerHome, federation: Federation, request: Path, output: Path) -> str:
    """Let in whoever made a request file, and write the answer for it; gives the member's name.

    Raises:
        ConfigError: the file is no request, or a file cannot be read or written.
        RefusedError: it proves no open code.
    """
    try:
        fields = read_json(read_whole(request, most=_MOST_BYTES), what="it")
        if fields["format"] != REQUEST_FORMAT:
            raise ValueError
        applicant = read_applicant(fields)
        proof, signature = bytes.fromhex(fields["proof"]), bytes.fromhex(fields["signature"])
    except OSError as error:
        raise ConfigError(f"{request}: cannot be read: {error.strerror}") from None
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{request}: expected a request, as fedlearn client join CODE --request writes it") from None
    try:
        member = federation.admit(applicant, proof, signature, pin=home.pin, nonce=NO_NONCE)
    except RefusedError as error:
        raise RefusedError(f"{request}: {error}; nobody was let in") from None
    authority = home.authority.certificate.pem.decode("ascii")
    told = {"address": home.superlink_address, "authority": authority, "name": member.name}
    answer = json.dumps(told, sort_keys=True, allow_nan=False)
    proof = answer_proof(member.verifier, home.pin, answer.encode())
    content = {"format": ANSWER_FORMAT, "answer": answer, "proof": proof.hex()}
    try:
        write_whole(output, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n", mode=0o644)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from None
    return member.name
