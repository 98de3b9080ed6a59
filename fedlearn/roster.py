"""The pinned list of who takes part: names, client ids and long-term Ed25519 keys. Its hash is in a holder's policy.

The first entry is the coordinator's (it signs certificates and sends no vectors); all others are clients.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

import tomli_w

from fedlearn.errors import ConfigError

__all__ = ["Roster", "RosterEntry"]

_FORMAT = "fedlearn/v1/roster"
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
            ConfigError: an id or a key twice.
        """
        entries = [
            {"name": e.name, "contact": e.contact, "client_id": e.client_id.hex(), "key": e.key.hex()}
            for e in (coordinator, *members)
        ]
        return cls.from_bytes(tomli_w.dumps({"format": _FORMAT, "member": entries}).encode())

    @classmethod
    def from_bytes(cls, content: bytes) -> "Roster":
        """The roster in a file's bytes.

        Raises:
            ConfigError: not a roster, an unknown field, or an id or a key twice.
        """
        try:
            parsed = tomllib.loads(content.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"the roster is not a TOML file: {error}") from None
        listed = parsed.get("member")
        if parsed.get("format") != _FORMAT or set(parsed) != {"format", "member"} or not isinstance(listed, list):
            raise ConfigError(f'the roster is not one of format "{_FORMAT}" with a list of members')
        entries = tuple(_entry(number, values) for number, values in enumerate(listed, start=1))
        if len(entries) < 2:
            raise ConfigError("the roster has no members; expected the coordinator and at least one client")
        for what in ("client_id", "key"):
            if len({getattr(entry, what) for entry in entries}) < len(entries):
                raise ConfigError(f"the roster has a {what} twice; each member is one party with a key of its own")
        return cls(content, entries[0], tuple(sorted(entries[1:], key=lambda entry: entry.client_id)))

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the file's bytes."""
        return hashlib.sha256(self.content).digest()

    @property
    def keys(self) -> Mapping[bytes, bytes]:
        """client id -> Ed25519 public key, of the clients."""
        return {entry.client_id: entry.key for entry in self.members}


def _entry(number: int, values: object) -> RosterEntry:
    if not isinstance(values, dict) or set(values) != _FIELDS or not all(isinstance(v, str) for v in values.values()):
        raise ConfigError(f"member {number} of the roster: expected exactly {', '.join(sorted(_FIELDS))}, each a text")
    try:
        client_id, key = bytes.fromhex(values["client_id"]), bytes.fromhex(values["key"])
    except ValueError:
        raise ConfigError(f"member {number} of the roster: client_id and key are hexadecimal digits") from None
    if len(client_id) != 16 or len(key) != 32:
        raise ConfigError(f"member {number} of the roster: expected a client_id of 16 bytes and a key of 32")
    return RosterEntry(values["name"], values["contact"], client_id, key)
