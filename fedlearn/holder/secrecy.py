"""What a process with keys and records takes from others on its machine, as far as Linux lets it."""

import ctypes
import resource
import sys
from typing import Final

__all__ = ["close_to_others"]

_PR_SET_DUMPABLE: Final = 4


def close_to_others() -> None:
    """No core dump of this process, and no other of the same user may trace it or read its memory (root still may).

    To be called before a secret is read. Elsewhere than on Linux only the core dump is forbidden.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
