"""`fedlearn client ledger`: what a data holder's releases cost so far. Who looks changes nothing."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlearn.cli.options import AsJson, Home, print_json
from fedlearn.errors import ConfigError
from fedlearn.host.home import home_folder

if TYPE_CHECKING:
    from fedlearn.ledger.statement import Account

__all__ = ["app", "tell_account"]

app = typer.Typer(help="What was released, and what it cost.", no_args_is_help=True, rich_markup_mode=None)

LedgerFile = Annotated[Path | None, typer.Option("--ledger", help="A file; by default client/ledger.db in the home.")]


@app.command("show")
def show(ledger: LedgerFile = None, home: Home = None, as_json: AsJson = False) -> None:
    """Show each data set's budget, what is spent of it, and the releases of each session."""
    from fedlearn.ledger.statement import read_statement

    statement = read_statement(_path(ledger, home))
    if as_json:
        print_json(statement.as_dict())
        return
    for account in statement.accounts:
        tell_account(account)
    if not statement.accounts:
        typer.echo("no data set has a budget yet")


@app.command("verify")
def verify(ledger: LedgerFile = None, home: Home = None, as_json: AsJson = False) -> None:
    """Check that every row is what was written, and that none is missing which was counted; exit code 1 if not."""
    from fedlearn.ledger.statement import read_statement

    path = _path(ledger, home)
    statement = read_statement(path)
    if as_json:
        told = statement.as_dict()
        print_json({"consistent": True, **{key: told[key] for key in ("entries", "head", "counted")}})
        return
    typer.echo(f"{path}: all {statement.entries} rows are what was written; the head is {statement.head.hex()}")
    if statement.counted is None:
        typer.echo("there is no count beside it, so whether rows are missing at its end cannot be seen")


@app.command("export")
def export(
    ledger: LedgerFile = None,
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="A row a line in JSON is what is printed anyway.")] = False,
) -> None:
    """Print every row as a line of canonical JSON, oldest first."""
    del as_json
    from fedlearn.ledger.statement import exported_rows

    for line in exported_rows(_path(ledger, home)):
        typer.echo(line)


@app.command("confirm")
def confirm(
    dataset_id: Annotated[str, typer.Argument(hidden=True)], ledger: LedgerFile = None, home: Home = None
) -> None:
    """Confirm that the data set DATASET_ID may hold records that are known under another id; written down for good.

    Both budgets are then spent on the same people, and what they may lose is the sum of both.
    """
    from fedlearn.deployment.users import acting_as_owner
    from fedlearn.ledger import Ledger
    from fedlearn.ledger.statement import read_statement

    path = _path(ledger, home)
    with acting_as_owner(path.parent):
        read_statement(path).account(dataset_id)
        with closing(Ledger(path)) as opened:
            opened.confirm(dataset_id)
    typer.echo(f"data set {dataset_id} is confirmed; what its people may lose is the sum over all its ids")


def _path(ledger: Path | None, home: Path | None) -> Path:
    if ledger is not None and home is not None:
        raise ConfigError("--ledger and --home are both given; leave one out: --home DIR means DIR/client/ledger.db")
    return ledger or home_folder(home) / "client" / "ledger.db"


def tell_account(account: "Account", *, with_estimate: bool = True) -> None:
    """One data set in lines; what is spent is the one figure that its budget bounds, unless an estimate is told too."""
    from fedlearn.privacy.guarantee import rounded_up

    budget = account.budget
    spent, estimate = (rounded_up(epsilon, 4) for epsilon in (account.spent, account.estimate))
    typer.echo(f"data set {account.dataset_id}")
    typer.echo(f" budget    epsilon {budget.max_epsilon:g} at delta {budget.max_delta:g} for one {budget.privacy_unit}")
    typer.echo(f" spent     epsilon {spent:g} of these")
    if with_estimate:
        typer.echo(
            f" estimate  epsilon {estimate:g}, at the best order and not at the budget's, {budget.order:g}; the budget "
        )
        typer.echo("           does not count by it, for runs may have been chosen after seeing earlier models")
    typer.echo(f" releases  {sum(account.releases.values())}; {account.reserved} more reserved, which count as spent")
    for session, count in account.releases.items():
        typer.echo(f"           {count} in session {session}")
