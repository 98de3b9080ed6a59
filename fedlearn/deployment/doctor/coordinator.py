"""A coordinator's home: keys, certificates, ports, members, databases, room."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from fedlearn.config.run_config import RunConfig
from fedlearn.deployment.doctor.check import Check, error, looked, ok, warning
from fedlearn.deployment.doctor.files import closed_folder, flower_home, secret_lines
from fedlearn.deployment.doctor.network import ask_server, date_line
from fedlearn.deployment.operating import check_run
from fedlearn.deployment.service import service_process
from fedlearn.deployment.superlink_process import is_whole
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.join_endpoint import listen
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.errors import ConfigError
from fedlearn.host.memory_limits import Room, check_coordinator_room

__all__ = ["check_coordinator"]


def check_coordinator(home: Path, run: Path | None) -> Iterator[Check]:
    """Every line about the coordinator's home; `run` is a run's file by which this machine is judged."""
    folder = home / "server"
    owner = f"run this as root or as the owner of {folder}"
    yield from looked("folder", owner, lambda: [closed_folder(folder)])
    yield from secret_lines(folder / name for name in ("ca.key", "server.key", "identity.key"))
    try:
        server = ServerHome.load(home)
    except ConfigError as problem:
        yield error("server", str(problem), "restore server/ from a backup, or begin anew: fedlearn server init")
        return
    yield from looked("certificates", "fedlearn server rotate-certificate", lambda: _certificates(server))
    yield from looked("ports", "fedlearn server stop, then start it again", lambda: _ports(server))
    yield from looked("members", "restore federation.db from a backup", lambda: [_members(server)])
    yield from looked("database", owner, lambda: [_database(server)])
    yield from looked("flower home", owner, lambda: [flower_home(folder)])
    if run is None:
        yield from looked("room", "make room", lambda: [_room(server)])
    else:
        yield from looked("run", f"correct {run}, or make room", lambda: [_run(server, run)])


def _certificates(server: ServerHome) -> Iterator[Check]:
    authority, own = server.authority.certificate, server.certificate
    yield date_line("authority", authority, "make a new home in time, and invite everybody again: server init")
    yield date_line("server certificate", own, "fedlearn server rotate-certificate")
    if server.address not in own.names:
        told = f"it is not for {server.address}, where clients are sent"
        remedy = f"fedlearn server rotate-certificate --name {server.address}"
        yield error("server certificate", told, remedy)


def _ports(server: ServerHome) -> Iterator[Check]:
    if _is_this_machine(server.host) and not _is_this_machine(server.address):
        told = f"it listens at {server.host} alone, and clients are sent to {server.address}"
        yield error("interface", told, "make the server with --host 0.0.0.0, or the address of one interface")
    process = service_process(server)
    if process is None:
        for port in (server.port, server.join_port):
            listen(server.host, port).close()
        yield ok("ports", f"{server.port} and {server.join_port} are free; the server is not started")
        return
    answer = ask_server(server.local_address, server.authority_path)
    if answer.certificate is None:
        yield error(
            "ports", f"process {process} serves, and {answer.problem}", f"see {server.folder / 'superlink.log'}"
        )
    elif answer.certificate.fingerprint != server.certificate.fingerprint:
        told = f"another certificate than server.crt is shown at {server.local_address}"
        yield error("ports", told, "fedlearn server stop, then start: somebody else may have the port")
    else:
        yield ok("ports", f"process {process} serves; {server.local_address} answers over TLS by server.crt")


def _members(server: ServerHome) -> Check:
    if not server.database_path.exists():
        return ok("members", "nobody is invited yet")
    federation = Federation(server.database_path)
    try:
        roster, members = federation.roster, [member for member in federation.members() if not member.revoked]
        late = [m.name for m in members if m.applicant is None and not federation.is_open(m)]
    finally:
        federation.close()
    if late:
        told = f"the codes of {', '.join(late)} are expired, and they have not joined"
        return warning("members", told, "fedlearn server invite NAME again, or revoke NAME")
    missing = [member.name for member in members if member.applicant is None]
    closed = f"the roster of {len(roster.members)} is closed" if roster else "the roster is open"
    awaited = f"; awaited: {', '.join(missing)}" if missing else ""
    return ok("members", f"{len(members)} members; {closed}{awaited}")


def _database(server: ServerHome) -> Check:
    path = server.folder / "superlink.db"
    if not path.exists():
        return ok("database", "Flower's database is made at the first start")
    if not is_whole(path):
        return warning("database", f"{path} is damaged", "start the server: it is set aside, and nothing is lost")
    return ok("database", f"{path} is whole, {path.stat().st_size / 1e6:.0f} MB")


def _room(server: ServerHome) -> Check:
    room = Room.at(server.folder)
    check_coordinator_room(room, message=0, cohort=0)
    return ok("room", f"{room.disk / 1e9:.1f} GB of disk and {room.memory / 1e9:.1f} GB of memory are free")


def _run(server: ServerHome, run: Path) -> Check:
    plan = check_run(server, run, population_size=_population(server, run))
    return ok("run", f"it can be begun here; a client's message has {plan.bytes_per_round / 1e6:.3g} MB")


def _population(server: ServerHome, run: Path) -> int:
    """The members of the roster; before there is one, what the run says."""
    if server.database_path.exists():
        federation = Federation(server.database_path)
        try:
            if roster := federation.roster:
                return len(roster.members)
        finally:
            federation.close()
    config = RunConfig.load(run)
    return config.data.population_size or config.secure_aggregation.planned_cohort


def _is_this_machine(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
