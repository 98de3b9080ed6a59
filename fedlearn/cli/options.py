"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Home", "Overrides"]

Home = Annotated[
    Path | None, typer.Option("--home", help="The party's folder; by default $FEDLEARN_HOME or ~/.fedlearn.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, any number of times.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
