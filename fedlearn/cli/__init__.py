"""The command line: one sentence and an exit code for a user's mistake, never a traceback. No logic lives here.

Whatever is slow to import is imported inside the commands, so that `fedlearn --help` answers at once.
"""

import errno
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Final, NoReturn

import click
import typer

from fedlearn.cli import audit, checks, client, server, simulate
from fedlearn.errors import FedlearnError, RunFailedError
from fedlearn.host.logs import begin_log, tell_error
from fedlearn.wording import did_you_mean, one_line

__all__ = ["app", "main"]

_USAGE: Final = 2
_INTERRUPTED: Final = 130
# Whatever writes a file names it where it fails; what is left without a name is a stream.
_OF_STREAMS: Final = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG)

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
app.command("verify")(checks.verify)
app.command("doctor")(checks.doctor)
app.add_typer(audit.app, name="audit")
app.add_typer(client.app, name="client")
app.add_typer(server.app, name="server")


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedlearn {version('fedlearn')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    _write_any_name()
    try:
        begin_log()
        code = app(prog_name="fedlearn", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(_USAGE)
    except click.UsageError as error:
        _fail(_usage_sentence(error), _USAGE)
    except FedlearnError as error:
        _fail(str(error), error.exit_code)
    except SystemExit:  # how click ends where nobody reads any more
        _fail("nobody reads standard output any more; the rest was not printed", RunFailedError.exit_code)
    except OSError as error:
        if error.filename is None and error.errno in _OF_STREAMS:
            sys.stdout = io.StringIO()  # the interpreter would try once more at its end
            _fail(f"standard output cannot be written: {error.strerror}", RunFailedError.exit_code)
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; the run could not go on", RunFailedError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        _fail("interrupted; what was released counts, the run folder is intact", _INTERRUPTED)


def _write_any_name() -> None:
    """Names of files need not be text; what has no letters is written as escapes, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(sentence: str, code: int) -> NoReturn:
    if not tell_error(one_line(sentence)):
        typer.secho(f"fedlearn: {one_line(sentence)}", err=True, fg="red")
    sys.exit(code)


def _usage_sentence(error: click.UsageError) -> str:
    """What is wrong with the line that was typed, the nearest valid name, and where help is."""
    context = error.ctx
    where = f"see {context.command_path if context else 'fedlearn'} --help"
    if context and isinstance(error, click.NoSuchOption):
        names = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        return f"{error.option_name}: no such option{_meant(error.option_name, names)}; {where}"
    if context and isinstance(error, click.exceptions.NoSuchCommand) and isinstance(context.command, click.Group):
        names = context.command.list_commands(context)
        return f"{error.command_name}: no such command{_meant(error.command_name, names)}; {where}"
    message = error.format_message()
    return f"{message[0].lower()}{message[1:].rstrip('.')}; {where}"


def _meant(name: str, names: Sequence[str]) -> str:
    hint = did_you_mean(name, names)
    return f" ({hint})" if hint else ""
