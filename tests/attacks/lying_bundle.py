"""What a coordinator could ship instead of a pipe: it runs as the node's user and takes whatever it can get.

Prints a line for each thing it got: the test expects none.
"""

import ctypes
import os
import socket
import sys
from pathlib import Path

# Everything is imported before: as another user this interpreter's own files may be out of reach.
_LIBC = ctypes.CDLL(None, use_errno=True)
_PTRACE_ATTACH = 16


def main(user: int, folder: str, agent: int, frames: list[bytes]) -> None:
    """Become `user`, then try."""
    if user != os.getuid():
        os.setgroups([Path(folder, "door").stat().st_gid])
        os.setgid(user)
        os.setuid(user)
    steal_file(Path(folder, "client"))
    for name in ("identity.key", "client.toml", "ledger.db", "patients.csv"):
        steal_file(Path(folder, "client", name))
    for name in ("mem", "environ", "maps", "cwd", "fd", "root"):
        steal_file(Path(f"/proc/{agent}", name))
    if _LIBC.ptrace(_PTRACE_ATTACH, agent, 0, 0) == 0:
        print("GOT: traces the agent")
    for number, frame in enumerate(frames):
        reply = asked(Path(folder, "door", "agent.sock"), frame)
        print(f"REPLY {number} {reply.hex()}")


def steal_file(path: Path) -> None:
    try:
        if path.is_dir():
            print(f"GOT: list of {path}: {sorted(path.iterdir())}")
        else:
            with path.open("rb") as opened:
                opened.read(1)
            print(f"GOT: {path}")
    except OSError:
        pass


def asked(door: Path, frame: bytes) -> bytes:
    received = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        try:
            connection.connect(str(door))
            connection.sendall(bytes(4) + frame)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
        except OSError as error:
            return f"failed: {error}".encode()
    return received[8:]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), [bytes.fromhex(frame) for frame in sys.argv[4:]])
