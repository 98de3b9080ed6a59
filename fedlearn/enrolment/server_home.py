"""The coordinator's folder: its authority, its certificate, its keys, and where everything else of it lies."""

import ipaddress
import os
import re
import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import tomli_w

from fedlearn.crypto.certificates import Authority, Certificate, KeyPair
from fedlearn.crypto.key_files import read_secret, read_signing_key
from fedlearn.crypto.signatures import SigningKey
from fedlearn.enrolment.invitation import PIN_BYTES
from fedlearn.errors import ConfigError
from fedlearn.host.durable import write_whole
from fedlearn.host.shipped import shipped_root
from fedlearn.policy.roster import RosterEntry
from fedlearn.toml import read_toml

__all__ = ["COORDINATOR", "ServerHome"]

COORDINATOR: Final = "Coordinator"

_FORMAT: Final = "fedlearn/v1/server"
_ALWAYS_NAMED: Final = ("localhost", "127.0.0.1")  # the processes of the coordinator reach each other so
_FIELDS: Final = {"format", "address", "host", "port", "join_port", "coordinator_id"}


@dataclass(frozen=True, slots=True)
class ServerHome:
    """`server/` in a party's home.

    `host` is where is listened, `address` the host name or address by which clients come.
    """

    folder: Path
    address: str
    host: str
    port: int
    join_port: int
    coordinator_id: bytes

    @classmethod
    def create(cls, home: Path, *, names: Sequence[str], host: str, port: int, join_port: int) -> Self:
        """Make the folder with an authority, a certificate for `names` (by default this host's) and a roster key.

        Raises:
            ConfigError: there is one already, or a value cannot be.
        """
        folder = (home / "server").absolute()
        if (folder / "server.toml").exists():
            raise ConfigError(f"{folder}: a server is there already; nothing was changed")
        _check_ports(port, join_port)
        _check_host(host)
        own = socket.gethostname()
        address = names[0] if names else ("127.0.0.1" if _is_loopback(host) else own)
        made = cls(folder, address, host, port, join_port, secrets.token_bytes(16))
        authority = Authority.new()
        server = authority.server_pair(made._certified([*(names or (own,))]))
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            for name in ("runs", "flwr"):
                (folder / name).mkdir(mode=0o700, exist_ok=True)
            made._write_pair("ca", authority.pair)
            made._write_pair("server", server)
            write_whole(made.identity_path, os.urandom(32), mode=0o600)
            shutil.copyfile(shipped_root() / "server" / "run.example.toml", folder / "run.example.toml")
            write_whole(folder / "server.toml", made._to_toml(), mode=0o600)
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from None
        return made

    @classmethod
    def load(cls, home: Path, *, rotating: bool = False) -> Self:
        """The folder that `create` made; without the key of its certificate where that is about to be replaced.

        Raises:
            ConfigError: there is none, it is damaged, or others may read a key.
        """
        folder = (home / "server").absolute()
        path = folder / "server.toml"
        try:
            values = read_toml(path)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; make a server with fedlearn server init") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except ConfigError:
            values = {}
        if not _is_whole(values):
            raise ConfigError(f"{path}: expected the file that fedlearn server init writes; restore it from a backup")
        ports, coordinator_id = (values["port"], values["join_port"]), bytes.fromhex(values["coordinator_id"])
        home_ = cls(folder, values["address"], values["host"], *ports, coordinator_id)
        for name in ("ca.key", "identity.key", *([] if rotating else ["server.key"])):
            read_secret(folder / name)
        return home_

    @property
    def authority(self) -> Authority:
        """Its certificate authority."""
        return Authority(KeyPair(read_secret(self.folder / "ca.key"), Certificate.read(self.authority_path)))

    @property
    def pin(self) -> bytes:
        """What a code says of the authority."""
        return self.authority.certificate.fingerprint[:PIN_BYTES]

    @property
    def authority_path(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.crt"

    @property
    def certificate_path(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.crt"

    @property
    def certificate(self) -> Certificate:
        """The server's certificate."""
        return Certificate.read(self.certificate_path)

    @property
    def key_path(self) -> Path:
        """The key of the server's certificate."""
        return self.folder / "server.key"

    @property
    def identity_path(self) -> Path:
        """The seed of the coordinator's key in the roster, 32 bytes."""
        return self.folder / "identity.key"

    @property
    def identity(self) -> SigningKey:
        """The coordinator's key in the roster: it signs certificates of runs."""
        return read_signing_key(self.identity_path)

    @property
    def entry(self) -> RosterEntry:
        """The coordinator in the roster."""
        return RosterEntry(COORDINATOR, "", self.coordinator_id, self.identity.public)

    @property
    def database_path(self) -> Path:
        """Invitations, members, rosters and runs."""
        return self.folder / "federation.db"

    @property
    def superlink_address(self) -> str:
        """Where clients find Flower's SuperLink, "host:port"."""
        return _joined(self.address, self.port)

    @property
    def join_address(self) -> str:
        """Where clients find the endpoint for joining, "host:port"."""
        return _joined(self.address, self.join_port)

    @property
    def local_host(self) -> str:
        """Where this machine's own processes reach what listens at `host`."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 (asked, not bound)

    @property
    def local_address(self) -> str:
        """Where this machine's own processes find the SuperLink, "host:port"."""
        return _joined(self.local_host, self.port)

    def rotate_certificate(self, names: Sequence[str]) -> Certificate:
        """A fresh key and certificate of the same authority, for `names` or the names that the last one had.

        Raises:
            ConfigError: a name that cannot be, or a file that cannot be written.
        """
        pair = self.authority.server_pair(self._certified([*(names or self.certificate.names)]))
        try:
            self._write_pair("server", pair)
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from None
        return pair.certificate

    def _certified(self, names: Sequence[str]) -> list[str]:
        host = [] if self.host in ("0.0.0.0", "::") else [self.host]  # noqa: S104 (compared, not bound)
        return list(dict.fromkeys([*names, self.address, *_ALWAYS_NAMED, *host]))

    def _write_pair(self, name: str, pair: KeyPair) -> None:
        write_whole(self.folder / f"{name}.key", pair.key_pem, mode=0o600)
        write_whole(self.folder / f"{name}.crt", pair.certificate.pem, mode=0o644)

    def _to_toml(self) -> bytes:
        values = {
            "format": _FORMAT,
            "address": self.address,
            "host": self.host,
            "port": self.port,
            "join_port": self.join_port,
            "coordinator_id": self.coordinator_id.hex(),
        }
        return tomli_w.dumps(values).encode()


def _is_whole(values: Mapping[str, Any]) -> bool:
    """Whether these are what `server.toml` holds, each in its form."""
    if set(values) != _FIELDS or values["format"] != _FORMAT:
        return False
    texts = all(isinstance(values[name], str) for name in ("address", "host", "coordinator_id"))
    ports = all(type(values[name]) is int for name in ("port", "join_port"))
    return texts and ports and re.fullmatch("[0-9a-f]{32}", values["coordinator_id"]) is not None


def _check_ports(port: int, join_port: int) -> None:
    for number in (port, join_port):
        if not 0 < number < 65536:
            raise ConfigError(f"a port of {number}; expected 1 to 65535")
    if port == join_port:
        raise ConfigError(f"port and join port are both {port}; expected two")


def _check_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"--host {host}: expected an address of this machine, such as 127.0.0.1 or 0.0.0.0") from None


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
