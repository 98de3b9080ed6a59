"""`fedlearn client`: what a data holder decides and looks at on its own machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fedlearn.cli import holder, join, ledger
from fedlearn.cli.options import Home, print_json
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.host.home import home_folder

if TYPE_CHECKING:
    from fedlearn.deployment.policy_check import PolicyCheck
    from fedlearn.enrolment.roster_acceptance import KnownRoster

__all__ = ["app"]

app = typer.Typer(help="A data holder: what it accepts, and from whom.", no_args_is_help=True, rich_markup_mode=None)
roster = typer.Typer(help="Who takes part.", no_args_is_help=True, rich_markup_mode=None)
policy = typer.Typer(help="What is accepted.", no_args_is_help=True, rich_markup_mode=None)
for command in (holder.start, holder.stop, holder.status, holder.pause, holder.model, holder.leave):
    app.command(command.__name__)(command)
app.add_typer(roster, name="roster")
app.add_typer(policy, name="policy")
app.add_typer(ledger.app, name="ledger")
app.command("join")(join.join)
roster.command("fetch")(join.fetch_roster)

PolicyFile = Annotated[Path | None, typer.Option("--policy", help="By default client/client.toml in the home.")]

_MANY: Final = 4


@roster.command("show")
def show_roster(
    file: Annotated[Path | None, typer.Argument(hidden=True)] = None,
    policy_file: PolicyFile = None,
    home: Home = None,
) -> None:
    """Show every member with its contact and the fingerprint of its key, and whom this holder confirmed.

    With FILE, a roster that was sent and is not accepted yet. Compare fingerprints with people you know, by another way
    than the coordinator.
    """
    from fedlearn.enrolment.roster_acceptance import accepted_roster, proposed_roster

    path = _policy_path(policy_file, home)
    _tell_roster(proposed_roster(path, file) if file else accepted_roster(path))
    if file:
        typer.echo("not accepted: fedlearn client roster accept")


@roster.command("accept")
def accept_roster(
    file: Annotated[Path, typer.Argument(hidden=True)],
    sha256: Annotated[str, typer.Option(help="The hash that you were told by another way than this file came.")],
    confirmed: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whose fingerprint you compared, any number of times; or all."),
    ] = None,
    policy_file: PolicyFile = None,
    home: Home = None,
) -> None:
    """Accept the roster FILE: check its hash, keep it, pin it in the policy, note whose keys were compared."""
    from fedlearn.deployment.users import acting_as_owner
    from fedlearn.enrolment import roster_acceptance

    path = _policy_path(policy_file, home)
    with acting_as_owner(path.parent):
        accepted = roster_acceptance.accept_roster(path, file, sha256=sha256, confirmed=confirmed or [])
    _tell_roster(accepted)
    typer.echo(f"accepted; {path} pins it")


@policy.command("check")
def check_policy(
    policy_file: Annotated[Path, typer.Argument(hidden=True)],
    run: Annotated[str, typer.Argument(hidden=True)],
    dimension: Annotated[int | None, typer.Option(help="Entries of the model, where it cannot be built here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Say line by line what the policy POLICY accepts of the run RUN, and why not; exit code 3 if anything is refused.

    POLICY is a client.toml; RUN is a run's TOML file or the name of a shipped scenario.
    """
    if dimension is not None and dimension < 1:
        raise ConfigError(f"--dimension is {dimension}; expected an integer of at least 1")
    from fedlearn.deployment import policy_check

    check = policy_check.check_policy(policy_file, run, dimension=dimension)
    if as_json:
        print_json(check.as_dict())
    else:
        _tell_check(check)
    if check.refused:
        raise RefusedError(
            f"{len(check.refused)} of {len(check.verdicts)} limits refuse this run, the first: "
            f"{check.refused[0].sentence}"
        )


@policy.command("accept-schema")
def accept_schema(
    run: Annotated[str, typer.Argument(hidden=True)],
    sha256: Annotated[str | None, typer.Option(help="Accept without a question, if the schema has this hash.")] = None,
    policy_file: PolicyFile = None,
    home: Home = None,
) -> None:
    """Show how the run RUN, a TOML file, would have this holder's table read; once accepted, the policy pins it.

    Columns, bounds, values and classes are the coordinator's choice: of a table no other schema is then answered.
    """
    import tomli_w

    from fedlearn.deployment.policy_check import AskedSchema
    from fedlearn.deployment.users import acting_as_owner

    path = _policy_path(policy_file, home)
    asked = AskedSchema.of(path, run)
    typer.echo(tomli_w.dumps({"data": json.loads(json.dumps(asked.schema, allow_nan=False))}))
    typer.echo(f"data set {asked.dataset_id}, schema SHA-256 {asked.sha256}")
    if sha256 is None and not holder.agrees(f"let runs read {asked.dataset_id} so?"):
        raise ConfigError("nothing was changed; or give --sha256 with this hash")
    if sha256 is not None and sha256.lower() != asked.sha256:
        raise RefusedError(f"--sha256 {sha256}: the schema of {run} has another hash; nothing was changed")
    with acting_as_owner(path.parent):
        asked.pin()
    typer.echo(f"accepted; {path} pins it (an agent that runs obeys it from its next start)")


def _policy_path(policy_file: Path | None, home: Path | None) -> Path:
    if policy_file is not None and home is not None:
        raise ConfigError("--policy and --home are both given; leave one out: --home DIR means DIR/client/client.toml")
    return policy_file or home_folder(home) / "client" / "client.toml"


def _tell_roster(known: "KnownRoster") -> None:
    for entry in known.entries:
        what = "coordinator, " if entry is known.roster.coordinator else ""
        contact = f" ({entry.contact})" if entry.contact else ""
        typer.echo(f"{entry.fingerprint}  {entry.name}{contact}: {what}{known.standing(entry)}")
    typer.echo(f"SHA-256 {known.roster.sha256.hex()}")
    missing, members = known.unconfirmed, len(known.roster.members)
    names = ", ".join(entry.name for entry in missing[:_MANY]) + (", ..." if missing[_MANY:] else "")
    typer.echo(
        f"{len(missing)} of {members} members not confirmed"
        + (f": {names}; a run is refused whose max_colluders is below {len(missing)}" if missing else "")
    )


def _tell_check(check: "PolicyCheck") -> None:
    typer.echo(f"data set {check.dataset_id}")
    for verdict in check.verdicts:
        mark = "ok" if verdict.accepted else "REFUSED"
        typer.echo(f" {mark:8}{verdict.limit:20} {verdict.run}; the policy accepts {verdict.policy}")
