"""How far this machine's clock is from the coordinator's: Flower turns away who is ahead, and says nothing of it."""

import http.client
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from fedlearn.crypto.certificates import Certificate
from fedlearn.errors import ConfigError

__all__ = ["check_offset", "offset_to"]

# Flower admits calls up to 5 s from the future and 305 s old.
_MOST_AHEAD: Final = 4.0
_MOST_BEHIND: Final = 240.0
_WARN: Final = 2.0
_SECONDS: Final = 10.0


def offset_to(address: str, authority: Path, clock: Callable[[], float] = time.time) -> float | None:
    """Seconds that this clock is ahead of the coordinator's, to about half a second; None where nobody answers.

    `address` is the SuperLink's "host:port", `authority` the certificate that its own must be signed with.

    Raises:
        ConfigError: there is no such certificate.
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=Certificate.read(authority).pem.decode("ascii", "replace"))
    connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=_SECONDS, context=context)
    try:
        before = clock()
        connection.request("GET", "/")
        told = connection.getresponse().getheader("date")
        after = clock()
        # The header's seconds are cut off: on average the server's clock was half a second further.
        return (before + after) / 2 - (parsedate_to_datetime(told).timestamp() + 0.5) if told else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def check_offset(offset: float) -> str | None:
    """A warning, or None.

    Raises:
        ConfigError: so far off that the coordinator would turn this node away.
    """
    if offset > _MOST_AHEAD or offset < -_MOST_BEHIND:
        way = "ahead of" if offset > 0 else "behind"
        raise ConfigError(
            f"this machine's clock is {abs(offset):.0f} s {way} the coordinator's, which lets in at most "
            f"{_MOST_AHEAD:.0f} s ahead and {_MOST_BEHIND:.0f} s behind; set it, as with timedatectl set-ntp true"
        )
    if abs(offset) > _WARN:
        return f"this machine's clock is {offset:+.0f} s from the coordinator's; set it before it drifts further"
    return None
