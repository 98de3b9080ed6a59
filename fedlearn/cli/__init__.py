"""The command line: one sentence and an exit code for a user's mistake, never a traceback. No logic lives here."""

import sys

import typer
from rich.console import Console

from fedlearn.cli import checks, simulate
from fedlearn.errors import FedlearnError

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedlearn",
    help="Train one model over data that may not move, and prove what leaked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("simulate")(simulate.simulate)
app.command("plan")(checks.plan)
app.command("report")(checks.report)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except FedlearnError as error:
        Console(stderr=True).print(f"fedlearn: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("fedlearn: interrupted; what was released counts, the run folder is intact")
        sys.exit(130)
