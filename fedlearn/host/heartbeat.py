"""Signs of life on standard output, for whoever started a process and listens: a process may be there, and stopped."""

import os
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["PULSE", "PULSE_SECONDS", "STARTING", "Silence", "give_pulse"]

# Lines of their own, which no log keeps: it does what it is for, or it is about to.
PULSE: Final = "fedlearn: alive"
STARTING: Final = "fedlearn: starting"
PULSE_SECONDS: Final = 5.0

_LONG_SECONDS: Final = 60.0


def give_pulse(
    is_well: Callable[[], bool], is_starting: Callable[[], bool] = lambda: False, *, every: float = PULSE_SECONDS
) -> None:
    """From now on write the line as often as this, in a thread, whenever `is_well` or `is_starting` says so."""

    def beat() -> None:
        while True:
            if sign := PULSE if is_well() else STARTING if is_starting() else None:
                try:
                    os.write(1, f"{sign}\n".encode())
                except OSError:
                    return  # nobody listens any more
            time.sleep(every)

    threading.Thread(target=beat, name="pulse", daemon=True).start()


class Silence:
    """How long something was not heard of. The clock stands still while the machine sleeps."""

    def __init__(self, seconds: float = _LONG_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self.heard()

    def heard(self) -> None:
        """It is heard of now."""
        self._since = self._clock()

    @property
    def is_long(self) -> bool:
        """Whether it has not been heard of for longer than it may be."""
        return self._clock() - self._since > self._seconds
