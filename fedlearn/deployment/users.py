"""The two users of a data holder's machine: who owns the records, and who runs what the coordinator ships."""

import grp
import pwd
from dataclasses import dataclass
from typing import Final, Self

from fedlearn.errors import ConfigError

__all__ = ["AGENT_USER", "GROUP", "NODE_USER", "Users"]

AGENT_USER: Final = "fedlearn-agent"
NODE_USER: Final = "fedlearn-node"
GROUP: Final = "fedlearn"  # whoever is in it reaches the agent's socket


@dataclass(frozen=True, slots=True)
class Users:
    """The two users and the group that they share, as this machine knows them."""

    agent: pwd.struct_passwd
    node: pwd.struct_passwd
    group: int

    @classmethod
    def find(cls) -> Self:
        """Look them up.

        Raises:
            ConfigError: one is missing.
        """
        try:
            return cls(pwd.getpwnam(AGENT_USER), pwd.getpwnam(NODE_USER), grp.getgrnam(GROUP).gr_gid)
        except KeyError as error:
            raise ConfigError(
                f"{error.args[0]}; fedlearn client join --system makes the users, or start with --same-user"
            ) from None
