"""Stage "attest": what a data holder signs once the last round is over (docs/protocol.md 6).

It says what this holder booked for the session, and which model it was shown; not that the model is the sum.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedlearn.crypto.signatures import SIGNATURE_BYTES, SigningKey, verify
from fedlearn.errors import ProtocolError
from fedlearn.ledger.rows import events_hash

__all__ = ["ATTEST", "ATTEST_REPLY_BYTES", "Attestation", "Attested", "dataset_tag", "unprotected", "unseparated"]

ATTEST: Final = 5  # the number of this stage in envelopes

_UNPROTECTED: Final = (
    "the moment of a reply: how long a client's training takes",
    "which clients take part in which round",
    "the sizes of messages and the schema of the data, which are the same for every client",
    "the choice of hyper-parameters, if it was made by looking at private data",
)
_TAG_LABEL: Final = b"fedlearn/dataset-tag/v1"
_LARGEST: Final = (1 << 32) - 1
_NUMBERS: Final = ("entries", "releases", "unconfirmed", "unconfirmed_members", "same_user")
_HEAD_START: Final = 16 + 4 * len(_NUMBERS)
ATTEST_REPLY_BYTES: Final = _HEAD_START + 32 + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What the signature is over. `session` has 16 bytes, hashes and the ledger's head 32.

    `roster_hash` is 32 zero bytes where a simulation has no roster. `events_hash` is `ledger.rows.events_hash` of what
    the ledger booked: who checks works it out from the certificate, so that one that states another event fails.
    """

    session: bytes
    config_hash: bytes
    roster_hash: bytes
    model_hash: bytes
    releases: int
    ledger_head: bytes
    events_hash: bytes

    def to_bytes(self) -> bytes:
        """session | config_hash | roster_hash | model_hash | releases u32 | ledger head | events hash: 180 bytes."""
        hashes = self.config_hash + self.roster_hash + self.model_hash
        return self.session + hashes + self.releases.to_bytes(4, "big") + self.ledger_head + self.events_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """One holder's entry in a certificate.

    `entries` and `ledger_head` are of this session's rows alone. `unconfirmed` roster members this holder has compared
    with nobody, and its policy accepts `unconfirmed_members` of them. `same_user`: its agent and its node, where the
    coordinator's code is, ran as one user; false in a simulation, which has no node.
    """

    client_id: bytes
    dataset_tag: bytes
    config_hash: bytes
    ledger_head: bytes
    entries: int
    releases: int
    unconfirmed: int
    unconfirmed_members: int
    same_user: bool
    key: bytes
    signature: bytes

    @classmethod
    def sign(
        cls,
        attested: Attested,
        key: SigningKey,
        *,
        client_id: bytes,
        dataset_id: str,
        entries: int,
        unconfirmed: int = 0,
        unconfirmed_members: int = 0,
        same_user: bool = False,
    ) -> "Attestation":
        """The holder's attestation."""
        return cls(
            client_id=client_id,
            dataset_tag=dataset_tag(attested.session, dataset_id),
            config_hash=attested.config_hash,
            ledger_head=attested.ledger_head,
            entries=entries,
            releases=attested.releases,
            unconfirmed=unconfirmed,
            unconfirmed_members=unconfirmed_members,
            same_user=same_user,
            key=key.public,
            signature=key.sign("attest", attested.to_bytes()),
        )

    def holds(self, *, session: bytes, roster_hash: bytes, model_hash: bytes, event: bytes | None) -> bool:
        """Whether the signature is that of `key`, over this session, roster and model.

        `event`, canonical, is the one of which each release is said to be; None where nothing is booked.
        """
        if self.releases >> 32:
            return False
        attested = Attested(
            session=session,
            config_hash=self.config_hash,
            roster_hash=roster_hash,
            model_hash=model_hash,
            releases=self.releases,
            ledger_head=self.ledger_head,
            events_hash=events_hash([event] if event is not None and self.releases else []),
        )
        return verify(self.key, self.signature, purpose="attest", message=attested.to_bytes())

    def to_reply(self) -> bytes:
        """dataset_tag | u32 each of the five numbers (same_user: 0 or 1) | ledger head | signature: 132 bytes."""
        numbers = b"".join(min(getattr(self, name), _LARGEST).to_bytes(4, "big") for name in _NUMBERS)
        return self.dataset_tag + numbers + self.ledger_head + self.signature

    @classmethod
    def from_reply(cls, reply: bytes, *, client_id: bytes, key: bytes, config_hash: bytes) -> "Attestation":
        """What the member of the roster with this id and key replied; not yet checked (`holds`).

        Raises:
            ProtocolError: another length, or a `same_user` that is neither 0 nor 1.
        """
        if len(reply) != ATTEST_REPLY_BYTES:
            raise ProtocolError(f"an attestation of {len(reply)} bytes; expected {ATTEST_REPLY_BYTES}")
        numbers = {name: int.from_bytes(reply[16 + 4 * k : 20 + 4 * k], "big") for k, name in enumerate(_NUMBERS)}
        if (same_user := numbers.pop("same_user")) > 1:
            raise ProtocolError(f"an attestation whose same_user is {same_user}; expected 0 or 1")
        return cls(
            client_id=client_id,
            dataset_tag=reply[:16],
            config_hash=config_hash,
            ledger_head=reply[_HEAD_START : _HEAD_START + 32],
            same_user=bool(same_user),
            key=key,
            signature=reply[_HEAD_START + 32 :],
            **numbers,
        )

    def as_dict(self) -> dict[str, Any]:
        """The entry as JSON has it; bytes in lower-case hex."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Attestation":
        """The entry that `as_dict` describes."""
        read: dict[str, Any] = {k: bytes.fromhex(told) if isinstance(told, str) else told for k, told in values.items()}
        return cls(**read)


def dataset_tag(session: bytes, dataset_id: str) -> bytes:
    """16 bytes by which a holder finds its entry again; another in each session, but a name may be guessed from it."""
    return hashlib.sha256(_TAG_LABEL + session + dataset_id.encode()).digest()[:16]


def unprotected(attestations: Iterable[Attestation]) -> tuple[str, ...]:
    """What every certificate has to say is not protected, and what these attestations add."""
    shared = unseparated(attestations)
    return (*_UNPROTECTED, shared) if shared else _UNPROTECTED


def unseparated(attestations: Iterable[Attestation]) -> str | None:
    """What a certificate has to say is not protected at these holders; None where all keep two users."""
    count = sum(attestation.same_user for attestation in attestations)
    if not count:
        return None
    return (
        f"records and keys of {count} data holder{'s' * (count > 1)} from the coordinator's code, which ran there "
        "as the user who owns them (--same-user)"
    )
