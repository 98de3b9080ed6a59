"""`fedlearn client join` and `roster fetch`: becoming a member of a federation."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fedlearn.cli.options import Home
from fedlearn.errors import ConfigError
from fedlearn.host.home import home_folder

if TYPE_CHECKING:
    from fedlearn.deployment.users import Users
    from fedlearn.enrolment.joining import Joined

__all__ = ["fetch_roster", "join"]

_POLL_SECONDS: Final = 2.0


def join(
    code: Annotated[str | None, typer.Argument(hidden=True)] = None,
    contact: Annotated[str, typer.Option(help="How the others reach you, such as a telephone number.")] = "",
    policy: Annotated[
        Path | None, typer.Option("--policy", help="A policy to begin with; by default the shipped example.")
    ] = None,
    request: Annotated[Path | None, typer.Option(help="Offline: write a request file for the operator.")] = None,
    answer: Annotated[Path | None, typer.Option(help="Offline: the operator's answer to the request.")] = None,
    system: Annotated[
        bool, typer.Option("--system", help="As root: make the two users, and give each its part of the home.")
    ] = False,
    home: Home = None,
) -> None:
    """Join a federation by the one-time CODE of its operator: make keys, prove the code, write an example of a policy.

    The coordinator's authority is checked by the code before anything is sent. Without a network: write a request with
    --request FILE, have the operator answer it, and take the answer with --answer FILE.
    """
    from fedlearn.enrolment import joining

    place = home_folder(home)
    users = _users(place) if system else None
    if answer is not None:
        if code or request:
            raise ConfigError("--answer FILE goes without CODE and --request: the code was kept with the request")
        _keep(place, joining.accept_answer(place, answer), users)
        return
    if code is None:
        raise ConfigError("no code; expected fedlearn client join CODE, with the code that the operator gave you")
    if request is not None:
        joining.write_request(place, code, request, contact=contact, policy=policy)
        typer.echo(f"give {request} to the operator, then take the answer: fedlearn client join --answer FILE")
        return
    _keep(place, joining.join(place, code, contact=contact, policy=policy), users)


def fetch_roster(
    wait: Annotated[float, typer.Option(help="Seconds to wait until it is closed.")] = 0.0,
    home: Home = None,
) -> None:
    """Fetch the roster that the coordinator closed last, to be compared and accepted; nothing is accepted by this."""
    from fedlearn.deployment.users import acting_as_owner
    from fedlearn.enrolment import joining

    place = home_folder(home)
    deadline = time.monotonic() + wait
    with acting_as_owner(place / "client"):
        while (fetched := joining.fetch_roster(place)) is None:
            if time.monotonic() >= deadline:
                raise ConfigError(
                    "the roster is not closed yet: somebody is missing; try again later, or --wait SECONDS"
                )
            time.sleep(_POLL_SECONDS)
    path, roster = fetched
    for entry in (roster.coordinator, *roster.members):
        typer.echo(f"{entry.fingerprint}  {entry.name}")
    typer.echo(f"SHA-256 {roster.sha256.hex()}")
    typer.echo(
        f"compare this hash with the operator and fingerprints with people you know, by another way, then accept it: "
        f"fedlearn client roster accept {path} --sha256 {roster.sha256.hex()} --confirmed NAME",
        err=True,
    )


def _users(home: Path) -> "Users":
    """The two users, who could work in this home."""
    from fedlearn.deployment.system_home import check_place
    from fedlearn.deployment.users import make_users

    users = make_users()
    check_place(home, users)
    return users


def _keep(home: Path, joined: "Joined", users: "Users | None") -> None:
    if users is not None:
        from fedlearn.deployment.system_home import lay_out

        lay_out(home, users)
    _tell(joined)


def _tell(joined: "Joined") -> None:
    typer.echo(f"joined as {joined.name}; the coordinator is at {joined.address}")
    typer.echo(f"your key: {_fingerprint(joined)}")
    typer.echo(f"next: go through {joined.folder / 'client.toml'}, then fedlearn client roster fetch")


def _fingerprint(joined: "Joined") -> str:
    from fedlearn.policy.roster import RosterEntry

    return RosterEntry(joined.name, "", joined.client_id, joined.identity.public).fingerprint
