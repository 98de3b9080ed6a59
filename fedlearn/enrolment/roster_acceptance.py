"""Accepting a roster: check its hash, write it beside the policy, note whose keys were compared, pin the hash."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import ConfigError, RefusedError
from fedlearn.host.durable import write_whole
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.policy.policy_file import with_value
from fedlearn.policy.roster import Confirmations, Roster, RosterEntry
from fedlearn.wording import did_you_mean

__all__ = ["ALL", "KnownRoster", "accept_roster", "accepted_roster", "proposed_roster"]

ALL = "all"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class KnownRoster:
    """A roster with what its holder knows of it. The coordinator's entry is the first of `entries`."""

    roster: Roster
    confirmations: Confirmations
    own: RosterEntry

    @property
    def entries(self) -> tuple[RosterEntry, ...]:
        """The coordinator and all clients."""
        return (self.roster.coordinator, *self.roster.members)

    @property
    def unconfirmed(self) -> tuple[RosterEntry, ...]:
        """The clients whose keys the holder compared with nobody: so many may be one and the same stranger."""
        return self.confirmations.missing(self.roster, except_for=self.own.client_id)

    def standing(self, entry: RosterEntry) -> str:
        """What the holder knows of one entry."""
        if entry.client_id == self.own.client_id:
            return "yourself"
        return "confirmed" if self.confirmations.holds(entry) else "not confirmed"


def accepted_roster(policy_path: Path) -> KnownRoster:
    """The roster that a policy pins.

    Raises:
        ConfigError, RefusedError: as `HolderPolicy.load`.
    """
    policy = HolderPolicy.load(policy_path)
    return KnownRoster(policy.roster, policy.confirmations, policy.own_entry(policy.roster))


def proposed_roster(policy_path: Path, file: Path) -> KnownRoster:
    """A roster that was sent, before it is accepted.

    Raises:
        ConfigError: a file cannot be read, or the roster lacks this holder.
    """
    policy = HolderPolicy.read(policy_path)
    roster = Roster.from_bytes(_content(file))
    return KnownRoster(roster, policy.confirmations, policy.own_entry(roster))


def accept_roster(policy_path: Path, file: Path, *, sha256: str, confirmed: Sequence[str]) -> KnownRoster:
    """Make `file` the roster of the policy; `confirmed` names whose fingerprints were compared, "all" every one's.

    Guarantees:
        nothing is written unless the file has the hash that was told;
        who was confirmed before and has the same name, id and key stays so, nobody else does;
        the policy keeps every other byte; a crash half-way leaves a policy that is refused, never another roster.

    Raises:
        ConfigError: a file cannot be read or written, a name is not in the roster, or the roster lacks this holder.
        RefusedError: the file has another hash.
    """
    policy = HolderPolicy.read(policy_path)
    content = _content(file)
    _check_hash(file, content, sha256.lower())
    roster = Roster.from_bytes(content)
    own = policy.own_entry(roster)
    confirmations = _confirm(roster, policy.confirmations, confirmed)
    pinned = with_value(policy_path.read_bytes(), "holder", "roster_sha256", sha256.lower(), place=policy_path)
    try:
        _replace(policy.roster_path, content)
        _replace(policy.confirmations_path, confirmations.to_bytes())
        _replace(policy_path, pinned)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written ({error.strerror}); accept the roster again") from None
    return KnownRoster(roster, confirmations, own)


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: the roster cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{file}: larger than 1 MiB; expected a roster")
    return content


def _check_hash(file: Path, content: bytes, told: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", told):
        raise ConfigError(f"--sha256 {told}: expected 64 hexadecimal digits")
    digest = hashlib.sha256(content).hexdigest()
    if digest != told:
        raise RefusedError(
            f"{file}: its SHA-256 is {digest}, not the {told} that you were told; it is another roster, so nothing was "
            "written"
        )


def _confirm(roster: Roster, before: Confirmations, names: Sequence[str]) -> Confirmations:
    entries = (roster.coordinator, *roster.members)
    by_name = {entry.name: entry for entry in entries}
    if ALL in by_name:
        raise ConfigError(f'the roster has a member named "{ALL}", the word for everybody; another name is needed')
    for name in names:
        if name != ALL and name not in by_name:
            hint = did_you_mean(name, by_name)
            meant = f"; {hint}" if hint else ""
            raise ConfigError(f"--confirmed {name}: expected a name in the roster: {', '.join(by_name)}{meant}")
    return Confirmations(tuple(e for e in entries if ALL in names or e.name in names or before.holds(e)))


def _replace(path: Path, content: bytes) -> None:
    """Write a whole file or nothing; a new one is its owner's alone, another keeps its mode."""
    path = path.resolve()
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    write_whole(path, content, mode=mode)
