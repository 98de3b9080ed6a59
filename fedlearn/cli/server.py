"""`fedlearn server`: the operator of a coordinator."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fedlearn.cli.options import AsJson, Home, Overrides, check_output_file, print_json, write_output
from fedlearn.cli.statements import guarantee_lines, percent
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.host.home import home_folder
from fedlearn.host.logs import tell

if TYPE_CHECKING:
    from fedlearn.deployment.operating import Progressed
    from fedlearn.enrolment.federation import Federation
    from fedlearn.enrolment.server_home import ServerHome

__all__ = ["app"]

app = typer.Typer(help="The operator of a coordinator.", no_args_is_help=True, rich_markup_mode=None)

_WATCH_SECONDS: Final = 1.0

Watch = Annotated[bool, typer.Option("--watch", help="Go on showing what changes.")]
Names = Annotated[list[str] | None, typer.Option("--name", help="A host name or address of this server, any number.")]


@app.command("init")
def init(
    name: Names = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where clients connect.")] = 8443,
    join_port: Annotated[int | None, typer.Option(help="Where they join; by default the next port.")] = None,
    home: Home = None,
) -> None:
    """Make a coordinator: a certificate authority, a certificate for this server, keys, and an example of a run."""
    from fedlearn.enrolment.server_home import ServerHome

    made = ServerHome.create(
        home_folder(home),
        names=name or [],
        host=host,
        port=port,
        join_port=port + 1 if join_port is None else join_port,
    )
    typer.echo(f"made {made.folder}; clients find it at {made.address}, ports {made.port} and {made.join_port}")
    typer.echo(f"certificate for {', '.join(made.certificate.names)}, until {made.certificate.ends:%Y-%m-%d}")
    typer.echo("next: fedlearn server invite NAME ...")


@app.command("invite")
def invite(
    names: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    days: Annotated[float, typer.Option(help="How long the codes are good.")] = 7.0,
    answer: Annotated[
        Path | None, typer.Option(help="Offline: the request file of an invited holder, let in instead of inviting.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Offline: where the answer to it goes.")] = None,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Invite the data holders NAME ...: print a one-time code for each, to be given to it and to nobody else.

    The names invited are the roster. A name that is invited again has a new code, and its old one is void.
    """
    from fedlearn.deployment import serving
    from fedlearn.enrolment import inviting

    with _opened(home) as (server, federation):
        if answer is not None:
            if names or output is None:
                raise ConfigError("--answer FILE lets in who made the file: give --output FILE with it, and no names")
            check_output_file(output)
            name = inviting.answer_request(server, federation, answer, output)
            typer.echo(f"{name} is let in; give it {output}")
            return
        invitations = inviting.invite(server, federation, names or [], days=days)
    serving.await_endpoint(server)
    for invitation in invitations:
        typer.echo(f"{invitation.name}\t{invitation.code}")
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time.time() + days * 86400))
    typer.echo(f"each is good once, until {until}, and kept nowhere: give it to its holder alone", err=True)
    if as_json:
        print_json({invitation.name: invitation.code for invitation in invitations})


@app.command("roster")
def show_roster(
    close: Annotated[bool, typer.Option("--close", help="Make the roster of all who joined; runs need one.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the roster that was closed last to a file.")] = None,
    home: Home = None,
) -> None:
    """Show who was invited, who joined and who is missing, and the roster that was closed last."""
    from fedlearn.deployment.operating import member_states

    if output is not None:
        check_output_file(output)
    with _opened(home) as (server, federation):
        closed = federation.close_roster(server.entry) if close else federation.roster
        keys = {m.name: m.applicant for m in federation.members()}
        for name, state in member_states(server, federation).items():
            applicant = keys[name]
            from fedlearn.policy.roster import RosterEntry

            mark = RosterEntry(name, "", applicant.client_id, applicant.key).fingerprint if applicant else "-"
            typer.echo(f"{mark:40} {name}: {state}")
        if closed is None:
            typer.echo("the roster is open; close it when all have joined: fedlearn server roster --close")
        else:
            typer.echo(f"closed, {len(closed.members)} members, SHA-256 {closed.sha256.hex()}")
            typer.echo("tell every holder this hash by another way than this network")
    if output is not None:
        if closed is None:
            raise ConfigError("the roster is open; there is nothing to write yet")
        write_output(output, closed.content)


@app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(hidden=True)], home: Home = None) -> None:
    """Take the member NAME out: of all cohorts at once, of Flower, and of the next roster. Its keys are burnt.

    Of one who did not join yet, the invitation is withdrawn.
    """
    from fedlearn.deployment import operating

    joined = operating.revoke(_load(home), name)
    typer.echo(f"{name} is {'taken out' if joined else 'not invited any more'}")


@app.command("start")
def start(
    detach: Annotated[
        bool, typer.Option("--detach", help="Go on in the background; fedlearn server stop ends it.")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="A port of 127.0.0.1 where Prometheus finds counts at /metrics.")
    ] = None,
    home: Home = None,
) -> None:
    """Serve: Flower's SuperLink over TLS, joining while anybody is awaited, and whatever runs are not finished."""
    from fedlearn.deployment import serving

    server = _load(home)
    if detach:
        process = serving.start_in_background(server, metrics_port=metrics_port)
        typer.echo(f"serving as process {process}; what it says stands in {serving.log_path(server)}")
    else:
        serving.serve(server, tell, metrics_port=metrics_port)


@app.command("stop")
def stop(run: Annotated[str | None, typer.Argument(hidden=True)] = None, home: Home = None) -> None:
    """Stop the run RUN; without RUN, the server: it goes on with unfinished runs when it is started again."""
    from fedlearn.deployment import serving
    from fedlearn.deployment.runs import ENDED, Runs

    server = _load(home)
    if run is None:
        serving.stop(server)
        typer.echo("stopped")
        return
    runs = Runs(server.database_path)
    booked = runs.find(run)
    if booked.state in ENDED:
        raise ConfigError(f"{run} is {booked.state} already")
    runs.stop(run)
    typer.echo(f"{run} is stopped as soon as the server sees it; what was released counts")


@app.command("run")
def run_(
    source: Annotated[str, typer.Argument(hidden=True)],
    set_: Overrides = None,
    watch: Watch = False,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Begin the run in the TOML file RUN, over the roster that was closed last; it survives restarts of the server."""
    from fedlearn.deployment import operating
    from fedlearn.deployment.service import service_process

    server = _load(home)
    if service_process(server) is None:
        raise ConfigError("the server is not up; start it first: fedlearn server start")
    run, plan = operating.begin_run(server, source, set_ or [])
    for line in guarantee_lines(plan.guarantees, masking=True):
        typer.echo(line, err=True)
    if not watch and not as_json:
        typer.echo(run)
        return
    progressed = _watch(server, run)
    typer.echo(f"Run folder: {progressed.folder} (open {progressed.folder / 'report.html'})", err=True)
    if as_json:
        print_json(progressed.as_dict())


@app.command("runs")
def runs(as_json: AsJson = False, home: Home = None) -> None:
    """List the runs, the last one last."""
    told = _progress(_load(home))
    for progressed in told:
        typer.echo(_line(progressed))
    if as_json:
        print_json({"runs": [progressed.as_dict() for progressed in told]})


@app.command("status")
def status(watch: Watch = False, as_json: AsJson = False, home: Home = None) -> None:
    """Show whether the server is up, which members are there, and how far the runs are."""
    server = _load(home)
    while True:
        told = _status(server)
        if as_json:
            print_json(told)
        else:
            _show_status(told)
        if not watch:
            return
        time.sleep(_WATCH_SECONDS * 2)


@app.command("rotate-certificate")
def rotate_certificate(name: Names = None, home: Home = None) -> None:
    """Make a new key and certificate for this server, of the same authority; a server that is up takes it at once."""
    from fedlearn.enrolment.server_home import ServerHome

    certificate = ServerHome.load(home_folder(home), rotating=True).rotate_certificate(name or [])
    typer.echo(f"certificate for {', '.join(certificate.names)}, until {certificate.ends:%Y-%m-%d}")


def _load(home: Path | None) -> "ServerHome":
    from fedlearn.enrolment.server_home import ServerHome

    return ServerHome.load(home_folder(home))


@contextmanager
def _opened(home: Path | None) -> "Iterator[tuple[ServerHome, Federation]]":
    from fedlearn.enrolment.federation import Federation

    server = _load(home)
    federation = Federation(server.database_path)
    try:
        yield server, federation
    finally:
        federation.close()


def _progress(server: "ServerHome") -> list["Progressed"]:
    from fedlearn.deployment.operating import progress_of
    from fedlearn.deployment.runs import Runs

    book = Runs(server.database_path)
    try:
        return [progress_of(server, run) for run in book.all()]
    finally:
        book.close()


def _watch(server: "ServerHome", run: str) -> "Progressed":
    """Tell each round of a run until it has ended.

    Raises:
        RunFailedError: it did not finish, or the server is gone.
    """
    from fedlearn.deployment.runs import ENDED
    from fedlearn.deployment.service import service_process

    told = 0
    while True:
        progressed = next(one for one in _progress(server) if one.run.id == run)
        if progressed.round > told:
            told = progressed.round
            typer.echo(_line(progressed), err=True)
        if progressed.run.state in ENDED:
            break
        if service_process(server) is None:
            raise RunFailedError(f"the server is gone; run {run} goes on when it is started again")
        time.sleep(_WATCH_SECONDS)
    if progressed.run.state != "finished":
        raise RunFailedError(f"run {progressed.name} is {progressed.run.state}{_because(progressed)}")
    return progressed


def _status(server: "ServerHome") -> dict[str, Any]:
    from fedlearn.deployment.operating import member_states
    from fedlearn.deployment.service import service_process
    from fedlearn.enrolment.federation import Federation

    federation = Federation(server.database_path)
    try:
        roster = federation.roster
        return {
            "process": service_process(server),
            "address": server.superlink_address,
            "certificate_ends": server.certificate.ends.isoformat(),
            "roster_sha256": roster.sha256.hex() if roster else None,
            "members": member_states(server, federation),
            "runs": [progressed.as_dict() for progressed in _progress(server)],
        }
    finally:
        federation.close()


def _show_status(told: dict[str, Any]) -> None:
    up = f"up, process {told['process']}" if told["process"] else "not up"
    typer.echo(f"server at {told['address']}: {up}; certificate until {told['certificate_ends'][:10]}")
    for name, state in told["members"].items():
        typer.echo(f" {name}: {state}")
    typer.echo(f"roster: {told['roster_sha256'] or 'open'}")
    for run in told["runs"]:
        known = f" (session {run['session'][:8]})" if run["session"] else ""
        typer.echo(f" {run['id']}{known}: {run['state']}, round {run['round']} of {run['rounds']}")


def _line(progressed: "Progressed") -> str:
    scored = "" if progressed.accuracy is None else f", accuracy {percent(progressed.accuracy)}"
    spent = "" if progressed.epsilon is None else f", epsilon {progressed.epsilon:.2f}"
    place = f"round {progressed.round} of {progressed.rounds}"
    return f"{progressed.name}: {progressed.run.state}, {place}{scored}{spent}{_because(progressed)}"


def _because(progressed: "Progressed") -> str:
    return f": {progressed.run.reason}" if progressed.run.reason else ""
