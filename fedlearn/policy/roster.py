"""The pinned list of who takes part: names, client ids and long-term Ed25519 keys. Its hash is in a holder's policy.

The first entry is the coordinator's (it signs certificates and sends no vectors); all others are clients. Which keys a
holder compared with their owners, by another way than the coordinator, it writes down beside its policy.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import tomli_w

from fedlearn.errors import ConfigError
from fedlearn.toml import parse_toml

__all__ = ["SIMULATED_COORDINATOR", "Confirmations", "Roster", "RosterEntry"]

SIMULATED_COORDINATOR: Final = b"\xff" * 16  # the coordinator's client id in every simulation

_FORMAT = "fedlearn/v1/roster"
_CONFIRMED_FORMAT = "fedlearn/v1/confirmed"
_FIELDS = {"name", "contact", "client_id", "key"}


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One member. `client_id` has 16 bytes, `key` is a raw Ed25519 public key of 32."""

    name: str
    contact: str
    client_id: bytes
    key: bytes

    @property
    def fingerprint(self) -> str:
        """What two people compare by telephone: the first 16 bytes of SHA-256 of the key, in groups of four digits."""
        digits = hashlib.sha256(self.key).hexdigest()[:32]
        return " ".join(digits[start : start + 4] for start in range(0, 32, 4))


@dataclass(frozen=True, slots=True)
class Roster:
    """A roster file, byte for byte: equal hashes show that all see one list, and nothing more."""

    content: bytes
    coordinator: RosterEntry
    members: tuple[RosterEntry, ...]

    @classmethod
    def of(cls, coordinator: RosterEntry, members: tuple[RosterEntry, ...]) -> "Roster":
        """The roster of these entries.

        Raises:
            ConfigError: an id, a key or a name twice.
        """
        return cls.from_bytes(_to_toml(_FORMAT, (coordinator, *members)))

    @classmethod
    def from_bytes(cls, content: bytes) -> "Roster":
        """The roster in a file's bytes.

        Raises:
            ConfigError: not a roster, an unknown field, or an id, a key or a name twice.
        """
        entries = _entries(content, _FORMAT, "the roster")
        if len(entries) < 2:
            raise ConfigError("the roster has no members; expected the coordinator and at least one client")
        for what in ("client_id", "key"):
            if len({getattr(entry, what) for entry in entries}) < len(entries):
                raise ConfigError(f"the roster has a {what} twice; each member is one party with a key of its own")
        # A person is confirmed by name: two names that read alike would confirm a stranger.
        if len({_read_aloud(entry.name) for entry in entries}) < len(entries):
            raise ConfigError("the roster has a name twice, or two that read alike; each member has a name of its own")
        return cls(content, entries[0], tuple(sorted(entries[1:], key=lambda entry: entry.client_id)))

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the file's bytes."""
        return hashlib.sha256(self.content).digest()

    @property
    def keys(self) -> Mapping[bytes, bytes]:
        """client id -> Ed25519 public key, of the clients."""
        return {entry.client_id: entry.key for entry in self.members}


@dataclass(frozen=True, slots=True)
class Confirmations:
    """The entries whose fingerprint the holder compared with their owner.

    Guarantees:
        who is confirmed is a name with a client id and a key: with another key it is not confirmed any more.
    """

    entries: tuple[RosterEntry, ...]

    @classmethod
    def from_bytes(cls, content: bytes) -> "Confirmations":
        """The confirmations in a file's bytes.

        Raises:
            ConfigError: it is not such a file.
        """
        return cls(_entries(content, _CONFIRMED_FORMAT, "the list of confirmed members"))

    def to_bytes(self) -> bytes:
        """The file: a roster's form, sorted by client id."""
        return _to_toml(_CONFIRMED_FORMAT, sorted(self.entries, key=lambda entry: entry.client_id))

    def holds(self, entry: RosterEntry) -> bool:
        """Whether this very key of this very name was compared."""
        return any(
            (entry.name, entry.client_id, entry.key) == (known.name, known.client_id, known.key)
            for known in self.entries
        )

    def missing(self, roster: Roster, *, except_for: bytes) -> tuple[RosterEntry, ...]:
        """The clients of a roster that were not compared, but for the holder itself."""
        return tuple(entry for entry in roster.members if entry.client_id != except_for and not self.holds(entry))


def _to_toml(form: str, entries: Iterable[RosterEntry]) -> bytes:
    members = [
        {"name": e.name, "contact": e.contact, "client_id": e.client_id.hex(), "key": e.key.hex()} for e in entries
    ]
    return tomli_w.dumps({"format": form, "member": members}).encode()


def _entries(content: bytes, form: str, what: str) -> tuple[RosterEntry, ...]:
    parsed = parse_toml(content, place=what)
    listed = parsed.get("member")
    if parsed.get("format") != form or set(parsed) != {"format", "member"} or not isinstance(listed, list):
        raise ConfigError(f'{what} is not one of format "{form}" with a list of members')
    return tuple(_entry(f"member {number} of {what}", values) for number, values in enumerate(listed, start=1))


def _entry(place: str, values: object) -> RosterEntry:
    if not isinstance(values, dict) or set(values) != _FIELDS or not all(isinstance(v, str) for v in values.values()):
        raise ConfigError(f"{place}: expected exactly {', '.join(sorted(_FIELDS))}, each a text")
    try:
        client_id, key = bytes.fromhex(values["client_id"]), bytes.fromhex(values["key"])
    except ValueError:
        raise ConfigError(f"{place}: client_id and key are hexadecimal digits") from None
    if len(client_id) != 16 or len(key) != 32:
        raise ConfigError(f"{place}: expected a client_id of 16 bytes and a key of 32")
    name = values["name"]
    if not name.strip() or not name.isprintable() or not values["contact"].isprintable():
        raise ConfigError(f"{place}: expected a name and a contact of printable signs, the name not empty")
    return RosterEntry(name, values["contact"], client_id, key)


def _read_aloud(name: str) -> str:
    """What a person sees of a name: case, width, accents written in two ways and spaces make no difference."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
