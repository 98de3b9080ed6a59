"""The way to a coordinator: whether it answers, by which certificate, how long that is good, and by which clock."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from fedlearn.crypto.certificates import Certificate
from fedlearn.deployment.clock import check_offset, offset_to
from fedlearn.deployment.doctor.check import Check, error, ok, warning
from fedlearn.errors import ConfigError

__all__ = ["Answer", "ask_server", "clock_line", "date_line", "way_lines"]

_SECONDS: Final = 10.0
_WARN_DAYS: Final = 30
_RENEW: Final = "the operator renews it: fedlearn server rotate-certificate"
_VERIFY_EXPIRED: Final = 10
_VERIFY_NAMES: Final = (62, 64)  # another host name, another address
# What OpenSSL says when the other side does not speak TLS.
_PLAIN_TEXT: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call: the server's certificate, or a problem and its remedy."""

    certificate: Certificate | None
    problem: str = ""
    remedy: str = ""


def ask_server(address: str, authority: Path) -> Answer:
    """Call a server as a node would: TLS that trusts one authority alone. `address` is "host:port"."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, int(port)), timeout=_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
            assert shown is not None
            return Answer(Certificate.of(ssl.DER_cert_to_PEM_cert(shown).encode("ascii")))
    except ssl.SSLCertVerificationError as problem:
        return Answer(None, *_why_not_trusted(address, problem))
    except ssl.SSLError as problem:
        if problem.reason in _PLAIN_TEXT:
            told = f"{address} answers in plain text; expected TLS"
            return Answer(None, told, "ask the operator which port is the SuperLink's; no proxy may end TLS before it")
        return Answer(None, f"{address}: TLS fails: {problem.reason}", "ask the operator whether the server is up")
    except socket.gaierror:
        told = f"{host} is a name that nobody knows here"
        return Answer(None, told, "see to name resolution, or ask the operator for the right address")
    except ConnectionRefusedError:
        return Answer(None, f"{address}: nobody listens there", "ask the operator: fedlearn server start")
    except TimeoutError:
        told = f"{address} does not answer within {_SECONDS:.0f} s"
        return Answer(None, told, f"let this machine reach port {port} there: a firewall may be in between")
    except OSError as problem:
        return Answer(None, f"{address}: {problem.strerror or problem}", "see to this machine's network")


def way_lines(address: str, authority: Path) -> Iterator[Check]:
    """Of the way to a coordinator, of its certificate, and of this machine's clock."""
    answer = ask_server(address, authority)
    if answer.certificate is None:
        yield error("reachability", answer.problem, answer.remedy)
        return
    yield ok("reachability", f"{address} answers over TLS, by a certificate of this federation's authority")
    yield date_line("server certificate", answer.certificate, _RENEW)
    yield clock_line(offset_to(address, authority))


def clock_line(offset: float | None) -> Check:
    """Of a clock that is so many seconds ahead of the coordinator's; None where that cannot be measured."""
    remedy = "set the clock, as with timedatectl set-ntp true"
    if offset is None:
        return warning("clock", "the coordinator does not tell its time", "compare the clocks by hand")
    try:
        told = check_offset(offset)
    except ConfigError as problem:
        return error("clock", str(problem), remedy)
    return warning("clock", told, remedy) if told else ok("clock", f"{offset:+.1f} s from the coordinator's")


def date_line(name: str, certificate: Certificate, remedy: str, *, now: datetime | None = None) -> Check:
    """Of a certificate: a warning 30 days before it ends (docs/specification/faults.md F20)."""
    left = certificate.ends - (now or datetime.now(UTC))
    day = f"{certificate.ends:%Y-%m-%d}"
    if left <= timedelta(0):
        return error(name, f"it ended on {day}", remedy)
    if left < timedelta(days=_WARN_DAYS):
        return warning(name, f"it ends on {day}, in {left.days} days", remedy)
    return ok(name, f"good until {day}")


def _why_not_trusted(address: str, problem: ssl.SSLCertVerificationError) -> tuple[str, str]:
    if problem.verify_code == _VERIFY_EXPIRED:
        return f"{address}: the server's certificate has expired, or this machine's clock is far off", _RENEW
    if problem.verify_code in _VERIFY_NAMES:
        told = f"{address}: the server's certificate is for other names"
        return told, "the operator names this one: fedlearn server rotate-certificate --name NAME"
    told = f"{address}: the server's certificate is not of the authority that this home joined"
    return told, "ask the operator by telephone: it is another server, or somebody is in between"
