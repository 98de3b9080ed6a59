"""Flower's processes of one user reach each other over a Unix-domain socket in a folder that nobody else may enter.

python -m fedlearn.flower.own_socket PROGRAM OPTIONS    one of Flower's programs, which reaches its server so

By itself Flower serves the interfaces that start runs, take tasks and give results at a port, which asks nobody who he
is: every user of the machine could use them. The kernel asks whoever opens a socket in a folder of mode 0700.

Proxies that the environment names are never used: a proxy cannot reach this machine's own processes, and a node comes
to its coordinator by the same way as `join` and `doctor` do.
"""

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

__all__ = ["SOCKET_VARIABLE", "altered", "go_directly", "main", "program_through_socket", "replace_in"]

# In the environment of whoever is to reach its server so: the path of the socket.
SOCKET_VARIABLE: Final = "FEDLEARN_FLOWER_SOCKET"


def altered(module: ModuleType, **replaced: object) -> SimpleNamespace:
    """A module as a part of Flower's is to see it: some names of it replaced, for that part alone."""
    return SimpleNamespace(**{**vars(module), **replaced})


def replace_in(module: Any, **replaced: object) -> None:
    """Give a module of Flower's other values of its own names.

    Raises:
        ImportError: it has no such name: this Flower does it in another way, so the replacement would do nothing, and a
            port that nobody guards might be open instead.
    """
    for name, value in replaced.items():
        if name not in vars(module):
            raise ImportError(f"{module.__name__} of this Flower has no {name}; install the flwr of requirements.lock")
        setattr(module, name, value)


def go_directly(socket: Path | None) -> None:
    """From now on this process's Flower clients use no proxy; with a `socket` they reach their server there.

    With TLS the certificate is checked for the host of the server's address, whatever the socket.
    """
    import httpx
    from flwr.supercore.protobuf import client

    def direct_client(*, verify: Any, **options: Any) -> httpx.Client:
        path = None if socket is None else str(socket)
        transport = httpx.HTTPTransport(verify=verify, trust_env=False, uds=path)
        return httpx.Client(transport=transport, trust_env=False, **options)

    replace_in(client, httpx=altered(httpx, Client=direct_client))


def program_through_socket(*command: str) -> list[str]:
    """The command line for one of Flower's programs that is to reach its server through the socket."""
    return [sys.executable, "-P", "-m", "fedlearn.flower.own_socket", *command]


def main() -> None:
    """Be one of Flower's programs."""
    sys.argv = sys.argv[1:]
    (program, *_) = entry_points(group="console_scripts", name=sys.argv[0])
    go_directly(Path(os.environ[SOCKET_VARIABLE]))
    program.load()()


if __name__ == "__main__":
    main()
