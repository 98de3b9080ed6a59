"""A coordinator's home for tests, on ports that nobody has, and four holders that join it by the book."""

import socket
from pathlib import Path

from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.inviting import Invitation, invite
from fedlearn.enrolment.server_home import ServerHome

NAMES = ("Ada", "Ben", "Cleo", "Dora")


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def new_home(path: Path) -> ServerHome:
    """A coordinator that listens on loopback."""
    port, join_port = free_ports(2)
    return ServerHome.create(path, names=[], host="127.0.0.1", port=port, join_port=join_port)


def invited(home: ServerHome, *names: str, days: float = 1.0) -> list[Invitation]:
    """Codes for names."""
    federation = Federation(home.database_path)
    try:
        return invite(home, federation, names, days=days)
    finally:
        federation.close()
