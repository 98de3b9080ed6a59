"""A data holder's side of the endpoint for joining (`join_endpoint`), with its authority checked before all else."""

import http.client
import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

from fedlearn.bounded import read_json
from fedlearn.crypto.certificates import Certificate
from fedlearn.enrolment.invitation import PIN_BYTES
from fedlearn.errors import ConfigError, RefusedError, RunFailedError

__all__ = ["JoinClient", "fetch_authority"]

_SECONDS: Final = 20.0
_MOST_BYTES: Final = 1 << 20

# nonce -> fields of a request, signed
Sign = Callable[[bytes], Mapping[str, str]]


def fetch_authority(address: str, pin: bytes) -> Certificate:
    """The certificate of the authority that the server at `address` shows, if it is the one of a code.

    Nothing is sent but the request for it, over a connection in which the server is not believed yet.

    Raises:
        RefusedError: it is another one.
        RunFailedError: nobody answers, or not to this.
    """
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.minimum_version = ssl.TLSVersion.TLSv1_2
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    status, pem = _exchange(address, unverified, "GET", "/authority", None)
    if status != 200:
        raise _not_ready(address, status)
    try:
        authority = Certificate.of(pem)
    except ConfigError:
        authority = None
    if authority is None or authority.fingerprint[:PIN_BYTES] != pin:
        raise RefusedError(
            f"{address} is not the server of this code: it shows another authority; nothing was told to it. Ask the "
            "operator whether the code is of this server: somebody may be in between"
        )
    return authority


class JoinClient:
    """Asks one endpoint, over TLS that trusts one authority alone.

    Raises (every method):
        RunFailedError: nobody answers, or not as this server.
        RefusedError: the endpoint refuses; it does not say why.
    """

    def __init__(self, address: str, authority: Certificate) -> None:
        self._address = address
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_verify_locations(cadata=authority.pem.decode("ascii"))

    def join(self, sign: Sign) -> dict[str, Any]:
        """The answer to an applicant."""
        status, body = self._post("/join", sign(self._nonce()))
        if status not in (200, 403):
            raise _not_ready(self._address, status)
        if status != 200:
            raise RefusedError(
                f"{self._address} does not accept the code: it is used, expired or withdrawn, or was mistyped; ask the "
                "operator for a new one"
            )
        try:
            answer = read_json(body, what="the answer")
        except ConfigError:
            answer = None
        return answer if isinstance(answer, dict) else {}

    def roster(self, sign: Sign) -> bytes | None:
        """The roster's bytes; None while it is not closed."""
        status, body = self._post("/roster", sign(self._nonce()))
        if status == 409:
            return None
        if status not in (200, 403):
            raise _not_ready(self._address, status)
        if status != 200:
            raise RefusedError(f"{self._address} does not know this holder as a member; ask the operator")
        return body

    def _nonce(self) -> bytes:
        status, body = self._post("/nonce", {})
        if status != 200:
            raise _not_ready(self._address, status)
        try:
            nonce = bytes.fromhex(body.decode("ascii"))
        except ValueError:
            nonce = b""
        if len(nonce) != 32:
            raise RunFailedError(f"{self._address} answers what no coordinator answers; is the address right?")
        return nonce

    def _post(self, path: str, fields: Mapping[str, str]) -> tuple[int, bytes]:
        return _exchange(self._address, self._context, "POST", path, json.dumps(fields, allow_nan=False).encode())


def _not_ready(address: str, status: int) -> RunFailedError:
    """What an answer means that says nothing of the code, nor of whose server it is."""
    return RunFailedError(f"{address} answers, and not to the question (HTTP status {status}); try again in a minute")


def _exchange(address: str, context: ssl.SSLContext, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=_SECONDS, context=context)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read(_MOST_BYTES)
    except ssl.SSLCertVerificationError as error:
        raise RunFailedError(
            f"{address} shows a certificate that is not good for it ({error.verify_message}); the operator renews it "
            "with fedlearn server rotate-certificate"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise RunFailedError(
            f"{address} does not answer ({why}); is fedlearn server start running there, and does a firewall let you?"
        ) from None
    finally:
        connection.close()
