"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedlearn.canonical import told_json
from fedlearn.errors import ConfigError

__all__ = ["AsJson", "Home", "Overrides", "check_output_file", "print_json", "write_output"]

Home = Annotated[
    Path | None, typer.Option("--home", help="The party's folder; by default $FEDLEARN_HOME or ~/.fedlearn.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, any number of times.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def print_json(value: Any) -> None:
    """Print what `--json` asks for, on one line; a number that is not finite is null."""
    typer.echo(told_json(value))


def check_output_file(path: Path) -> None:
    """See, before anything is done, that `--output` can be a file: nothing, or a plain file, has this name.

    Raises:
        ConfigError: a folder, a link, a device, a pipe or a socket has; it stays.
    """
    from fedlearn.host.durable import check_replaceable

    try:
        check_replaceable(path)
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}") from None


def write_output(path: Path, content: bytes) -> None:
    """Write the file `--output` as a whole.

    Raises:
        ConfigError: it cannot be written.
    """
    from fedlearn.host.durable import write_whole

    try:
        write_whole(path, content)
    except OSError as error:
        raise ConfigError(f"--output {path}: cannot be written: {error.strerror}") from None
