"""Where a party keeps its state: one home is one party, so four clients on one machine are four homes."""

import os
from pathlib import Path

from fedlearn.errors import ConfigError

__all__ = ["absolute_path", "expanded", "home_folder"]


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


def absolute_path(value: object, folder: Path) -> object:
    """A path as from `folder`, where `value` is a text, else `value`.

    Raises:
        ConfigError: it can be no path, or none that a TOML file can hold.
    """
    if not isinstance(value, str):
        return value
    try:
        path = str((folder / expanded(value)).resolve())
        path.encode()  # config.toml has to hold it
    except UnicodeError:
        raise ConfigError(f"{value}: its path is not UTF-8, as TOML has to be; rename the file or its folder") from None
    except ValueError:
        raise ConfigError(f"{value!r}: no path of a file; expected one without NUL signs") from None
    return path


def expanded(path: str | Path) -> Path:
    """A path whose `~` is a home folder.

    Raises:
        ConfigError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: there is no such home folder; write the path out") from None
