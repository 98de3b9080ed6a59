"""`fedlearn client start | stop | status | pause | leave`: the running side of a data holder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
import typer

from fedlearn.cli.ledger import tell_account
from fedlearn.cli.options import AsJson, Home, check_output_file, print_json, write_output
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.host.home import home_folder
from fedlearn.host.logs import tell
from fedlearn.wording import one_line

if TYPE_CHECKING:
    from fedlearn.deployment.holder_status import HolderStatus
    from fedlearn.deployment.starting import Start

__all__ = ["agrees", "leave", "model", "pause", "start", "status", "stop"]


def start(
    same_user: Annotated[
        bool, typer.Option("--same-user", help="Run agent and node as this user: their separation is then gone.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Only the agent, or only the node, as their own services.")] = None,
    accept_policy: Annotated[str | None, typer.Option(help="The SHA-256 of the policy that is accepted.")] = None,
    accept_roster: Annotated[str | None, typer.Option(help="The SHA-256 of the roster that is accepted.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="In the background; client stop ends it.")] = False,
    home: Home = None,
) -> None:
    """Show what this holder accepts and ask once; then run its agent and Flower's node, and look after both.

    It stays in the foreground. Without an answer, or the two hashes, nothing runs.
    """
    from fedlearn.deployment import starting
    from fedlearn.deployment.users import acting_as_owner

    begin = starting.Start(_folder(home), same_user, _part(only))
    begin.check_users()
    if only != "node":
        with acting_as_owner(begin.folder):
            begin.check_not_running()
            begin.check_socket()
            _accept(begin, accept_policy, accept_roster)
    if same_user:
        tell("agent and node run as one user: whoever wrote the coordinator's code could read records and key")
    if detach:
        tell(f"started, process {starting.start_in_background(begin)}")
    else:
        starting.run(begin, tell)


def stop(home: Home = None) -> None:
    """Stop what fedlearn client start runs, and wait until it is gone."""
    from fedlearn.deployment import starting

    starting.stop(_folder(home))
    tell("stopped")


def status(home: Home = None, as_json: AsJson = False) -> None:
    """Show what runs, and for each data set what was spent, by how many sessions, and what is left."""
    from fedlearn.deployment.holder_status import read_status

    found = read_status(_folder(home))
    if as_json:
        print_json(found.as_dict())
    else:
        _tell(found)


def pause(
    end: Annotated[bool, typer.Option("--end", help="Go on taking part.")] = False,
    home: Home = None,
) -> None:
    """Take part in no further attempt until --end; one that began goes on."""
    from fedlearn.deployment import holder_status
    from fedlearn.deployment.users import acting_as_owner

    with acting_as_owner(_folder(home)):
        holder_status.pause(_folder(home), end=end)
    tell("goes on taking part" if end else "paused: no attempt begins; fedlearn client pause --end goes on")


def model(
    output: Annotated[Path, typer.Option(help="Where the model is written; a file that is there is refused.")],
    session: Annotated[str | None, typer.Option(help="The run's session; by default the latest that ended.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The run's certificate.json: only the model that it certifies is written.")
    ] = None,
    home: Home = None,
) -> None:
    """Write the final model of a run in which this holder took part, as its agent was shown it and signed for it."""
    from fedlearn.certificate.verify import verify_certificate
    from fedlearn.deployment.holder_status import final_model
    from fedlearn.policy.holder_policy import HolderPolicy

    folder = _folder(home)
    check_output_file(output)
    if output.exists():
        raise ConfigError(f"--output {output}: there already; nothing was written")
    content = final_model(folder, session).read_bytes()
    if certificate is not None:
        roster = HolderPolicy.load(folder / "client.toml").roster
        verification = verify_certificate(certificate.read_bytes(), content, roster)
        if not verification.passed:
            raise FedlearnError(f"{certificate}: {verification.verdict}; nothing was written")
        tell(one_line(verification.verdict))
    write_output(output, content)
    tell(f"{output} written" + ("" if certificate else "; check it: fedlearn verify CERT MODEL --roster FILE"))


def leave(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Leave the federation: the node's key and the roster are deleted. The ledger stays, for it counts for life."""
    from fedlearn.deployment import holder_status

    if not yes and not agrees("leave, and delete the node's key and the roster?"):
        raise ConfigError("nothing was changed")
    holder_status.leave(_folder(home))
    tell("left; tell the operator, who takes the name out: fedlearn server revoke NAME")


def _accept(begin: "Start", policy_sha256: str | None, roster_sha256: str | None) -> None:
    from fedlearn.deployment.starting import keep_accepted
    from fedlearn.enrolment.roster_acceptance import accepted_roster
    from fedlearn.policy.acceptance import Acceptance
    from fedlearn.policy.holder_policy import HolderPolicy

    acceptance = Acceptance.of(HolderPolicy.load(begin.policy_path))
    known = accepted_roster(begin.policy_path)
    tell(f"policy {begin.policy_path}")
    tell(f"  SHA-256 {acceptance.policy_sha256}")
    tell(f"roster of {len(known.roster.members)} members, {len(known.unconfirmed)} of them not confirmed by you")
    tell(f"  SHA-256 {acceptance.roster_sha256}")
    told = acceptance.check_told(policy_sha256, roster_sha256) or acceptance.is_known(begin.folder)
    if not told and not agrees("accept both, and start?"):
        raise ConfigError(
            "not accepted, so nothing runs; or give --accept-policy and --accept-roster with these hashes"
        )
    keep_accepted(begin, acceptance)


def agrees(question: str) -> bool:
    """The answer; no where nobody is there to give one."""
    try:
        return typer.confirm(question, err=True)
    except click.Abort:
        return False


def _part(only: str | None) -> Literal["agent", "node"] | None:
    match only:
        case None | "agent" | "node":
            return only
    raise ConfigError(f"--only {only}: expected agent or node")


def _tell(found: "HolderStatus") -> None:
    runs = f"runs, process {found.process}" if found.process else "does not run"
    typer.echo(f"the client {runs}{'; paused' if found.paused else ''}")
    for name, part in found.parts.items():
        problem = f"; {one_line(str(part['problem']))}" if part["problem"] else ""
        waits = "started, not let in by the coordinator" if name == "node" else "started, not ready"
        state = "up" if part["up"] else waits if part["alive"] else "down"
        typer.echo(f"  {name}: {state} for {part['seconds']} s{problem}")
    if found.policy_problem:
        typer.echo(f"  the policy does not hold: {found.policy_problem}")
    if found.policy_differs:
        typer.echo(
            "  the policy's file was changed and is not what runs: fedlearn client stop, then start, to accept it"
        )
    for name, sentence in found.unusable_rows.items():
        typer.echo(f"  data set {name}, in its last run: {one_line(sentence)}")
    for name, work in found.failed_work.items():
        typer.echo(f"  data set {name}, in its last run: {one_line(work.sentence)}")
    for account in found.accounts:
        tell_account(account, with_estimate=False)


def _folder(home: Path | None) -> Path:
    return home_folder(home) / "client"
