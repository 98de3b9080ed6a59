"""A clock that a test moves: every Python process with this folder on its path adds the seconds in a file to its time.

Nobody may move this machine's own clock, and faketime breaks Flower's node. An agent, whose libraries want the true
`datetime`, keeps its own.
"""

import datetime
import os
import sys
import time
from pathlib import Path

_true_time, _true_datetime = time.time, datetime.datetime
_file = Path(os.environ.get("MOVED_CLOCK", "/nonexistent"))


def _offset() -> float:
    try:
        return float(_file.read_text())
    except (OSError, ValueError):
        return 0.0


class _Moved(_true_datetime):
    @classmethod
    def now(cls, tz=None):
        return _true_datetime.now(tz) + datetime.timedelta(seconds=_offset())


if "MOVED_CLOCK" in os.environ and "fedlearn.holder.deployed" not in sys.orig_argv:
    time.time = lambda: _true_time() + _offset()
    datetime.datetime = _Moved
