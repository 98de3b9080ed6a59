"""What every kind of audit comes to."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["CONTROL_FAILED", "Audit"]

CONTROL_FAILED = "the control without privacy failed, so this audit shows nothing"


class Audit(Protocol):
    """An attack's result beside the claim."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints and `audit.json` holds; `kind` says which attack it was."""

    @property
    @abstractmethod
    def failure(self) -> str | None:
        """Why it does not pass, in a sentence; None where it passes."""

    def pictures(self) -> Mapping[str, bytes]:
        """What it drew, by file name."""
        return {}
