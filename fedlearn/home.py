"""Where a party keeps its state: one home is one party, so four clients on one machine are four homes."""

import os
from pathlib import Path

from fedlearn.errors import ConfigError

__all__ = ["home_folder"]


def home_folder(given: Path | None = None) -> Path:
    """`given`, else $FEDLEARN_HOME, else ~/.fedlearn; below it `client/`, `server/` and `cache/`. It may not exist.

    The path is absolute, its "~" replaced: processes that work elsewhere are told of it, and no shell may have seen it.

    Raises:
        ConfigError: this user has no home folder, and no other was named.
    """
    stated = os.environ.get("FEDLEARN_HOME")
    try:
        return (given or Path(stated or "~/.fedlearn")).expanduser().absolute()
    except RuntimeError:
        named = given or stated
        raise ConfigError(
            f"{named}: there is no such home folder; write the path out"
            if named
            else "this user has no home folder; name one for fedlearn: --home DIR, or FEDLEARN_HOME=DIR"
        ) from None
