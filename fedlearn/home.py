"""Where a party keeps its state: one home is one party, so four clients on one machine are four homes."""

import os
from pathlib import Path

__all__ = ["home_folder"]


def home_folder(given: Path | None = None) -> Path:
    """`given`, else $FEDLEARN_HOME, else ~/.fedlearn; below it `client/`, `server/` and `cache/`. It may not exist.

    The path is absolute: processes that work elsewhere are told of it.
    """
    stated = os.environ.get("FEDLEARN_HOME")
    return (given or (Path(stated) if stated else Path.home() / ".fedlearn")).absolute()
