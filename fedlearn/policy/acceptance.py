"""What a holder accepted when it started its client: its policy and its roster, byte for byte, kept beside them.

The agent runs by these bytes, also when it is started again after a crash: what lies on disk by then, nobody may have
accepted.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import tomli_w

from fedlearn.errors import ConfigError, RefusedError
from fedlearn.host.durable import write_whole
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.toml import read_toml

__all__ = ["ACCEPTED_FILE", "Acceptance"]

ACCEPTED_FILE: Final = "accepted.toml"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The bytes of a policy and of the roster that it pins."""

    policy: bytes = field(repr=False)
    roster: bytes = field(repr=False)

    @classmethod
    def of(cls, policy: HolderPolicy) -> Self:
        """Of a policy and its roster as they are now."""
        return cls(policy.path.read_bytes(), policy.roster.content)

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """What was accepted last in the home whose `client/` is `folder`.

        Raises:
            ConfigError: nothing was, or it cannot be read.
        """
        path = folder / ACCEPTED_FILE
        try:
            known = read_toml(path)
            return cls(known["policy"].encode(), known["roster"].encode())
        except (OSError, ConfigError, KeyError, AttributeError, ValueError):
            raise ConfigError(f"{path}: cannot be read; fedlearn client start asks, and writes it") from None

    @property
    def policy_sha256(self) -> str:
        """Of the policy's file, in hexadecimal digits."""
        return hashlib.sha256(self.policy).hexdigest()

    @property
    def roster_sha256(self) -> str:
        """Of the roster's file."""
        return hashlib.sha256(self.roster).hexdigest()

    def is_known(self, folder: Path) -> bool:
        """Whether the holder accepted these very two last."""
        try:
            return Acceptance.kept(folder) == self
        except ConfigError:
            return False

    def check_told(self, policy_sha256: str | None, roster_sha256: str | None) -> bool:
        """Whether both hashes were told, for a start without a question.

        Raises:
            ConfigError: only one of them was.
            RefusedError: one is not that of the file.
        """
        if policy_sha256 is None and roster_sha256 is None:
            return False
        if policy_sha256 is None or roster_sha256 is None:
            raise ConfigError("--accept-policy and --accept-roster go together; each has the hash of its file")
        for what, told, here in (
            ("policy", policy_sha256, self.policy_sha256),
            ("roster", roster_sha256, self.roster_sha256),
        ):
            if told.lower() != here:
                raise RefusedError(f"the {what} here has SHA-256 {here}, not the {told} that is accepted; nothing runs")
        return True

    def keep(self, folder: Path) -> None:
        """Write down that it was accepted; the caller holds the lock without which no agent runs."""
        values = {
            "policy_sha256": self.policy_sha256,
            "roster_sha256": self.roster_sha256,
            "policy": self.policy.decode(),
            "roster": self.roster.decode(),
        }
        write_whole(folder / ACCEPTED_FILE, tomli_w.dumps(values).encode(), mode=0o600)

    def holder_policy(self, path: Path) -> HolderPolicy:
        """The accepted policy, whose file is `path`, with the accepted roster.

        Raises:
            ConfigError, RefusedError: as `HolderPolicy.load`.
        """
        return HolderPolicy.of_bytes(self.policy, roster=self.roster, path=path)

    def is_of(self, path: Path) -> bool:
        """Whether the policy's file still has these bytes."""
        try:
            return path.read_bytes() == self.policy
        except OSError:
            return False
