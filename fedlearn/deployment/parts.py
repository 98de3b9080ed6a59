"""The processes of a service: started, heard, started again when they end, and ended in order."""

import json
import logging
import logging.handlers
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from fedlearn.host.heartbeat import PULSE, PULSE_SECONDS, STARTING, Silence
from fedlearn.host.logs import line_of, without_secrets
from fedlearn.host.process_tree import descendants

__all__ = ["BackOff", "Part"]

_LOG_BYTES: Final = 5 << 20
_LOGS_KEPT: Final = 3
_LINES_KEPT: Final = 60
_END_SECONDS: Final = 10.0
_UP_SECONDS: Final = 4 * PULSE_SECONDS


@dataclass(slots=True)
class BackOff:
    """When to start again what has ended: soon, then less often; `reported` once that did not help for a while.

    Flower refuses a node that was killed until its lease has lapsed, up to 60 s: that is no failure yet.
    """

    clock: Callable[[], float] = time.monotonic
    longest: float = 15.0
    steady: float = 60.0
    patience: float = 120.0
    _pause: float = 0.5
    _failing_since: float | None = None

    def next_start(self, lived: float) -> float:
        """The moment of the next start, of something that ended now after it lived so many seconds."""
        now = self.clock()
        if lived >= self.steady:
            self._pause, self._failing_since = 0.5, None
        if self._failing_since is None:
            self._failing_since = now - lived if lived < self.steady else now
        self._pause = min(2 * self._pause, self.longest)
        return now + self._pause

    @property
    def is_failure(self) -> bool:
        """Whether starting again has not helped for `patience` seconds."""
        return self._failing_since is not None and self.clock() - self._failing_since > self.patience


@dataclass(slots=True)
class Part:
    """One process with its log, a line a JSON object: its own lines, or others wrapped.

    It runs in `folder`, by default this process's. `silence` is how long it has given no sign of life
    (`fedlearn.host.heartbeat`); its start is one. That it does what it is for, it must have said itself.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log_file: Path
    back_off: BackOff = field(default_factory=BackOff)
    folder: Path | None = None
    silence: Silence = field(default_factory=Silence)
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    at_work: float = float("-inf")
    lines: "deque[str]" = field(default_factory=lambda: deque(maxlen=_LINES_KEPT))

    def start(self) -> None:
        """Start it; what it says goes to its log, which is rotated."""
        self.lines.clear()
        self.started, self.at_work = time.monotonic(), float("-inf")
        self.silence.heard()
        # A session of its own: Ctrl-C in the terminal is for the process that ends it in order.
        self.process = subprocess.Popen(  # noqa: S603 (our own modules)
            list(self.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(self.environment),
            cwd=self.folder,
            start_new_session=True,
        )
        assert self.process is not None
        assert self.process.stdout is not None
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def is_up(self) -> bool:
        """Whether it runs, and said lately that it does what it is for."""
        return self.is_alive and time.monotonic() - self.at_work <= _UP_SECONDS

    @property
    def lived(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started

    def end(self) -> None:
        """SIGTERM, then what closing its standard input and SIGKILL do, to it and all below it.

        One that is stopped is woken first, so that it too can end in order.
        """
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGCONT):
            with suppress(ProcessLookupError):
                self.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(2.0)
        if self.process.poll() is None:  # nor will anything below it end by itself
            for process in descendants(self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self.process.kill()
        self.process.wait()

    def _listen(self, said: IO[bytes]) -> None:
        log = logging.handlers.RotatingFileHandler(self.log_file, maxBytes=_LOG_BYTES, backupCount=_LOGS_KEPT)
        os.chmod(self.log_file, 0o600)  # noqa: PTH101 (a path that was just opened)
        with said:
            for raw in said:
                line = without_secrets(raw.decode("utf-8", "replace").rstrip())
                for sign in (PULSE, STARTING):
                    if line.endswith(sign):  # a line may have been half written when it came
                        self.silence.heard()
                        self.at_work = time.monotonic() if sign == PULSE else self.at_work
                        line = line.removesuffix(sign)
                if not line:
                    continue
                self.lines.append(line)
                log.emit(logging.makeLogRecord({"msg": _as_json(self.name, line)}))
        log.close()


def _as_json(name: str, line: str) -> str:
    try:
        if isinstance(json.loads(line), dict):
            return line
    except ValueError:
        pass
    return line_of(name, line)
