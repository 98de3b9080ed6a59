"""`make soak SEED=n`: faults of every kind, in one process and then in a real federation, and what must never happen.

python -m tests.soak --seed N [--only in-process | real] [--minutes 24]

The schedule is the seed's. Each fault counts when its effect was observed. The last line on standard output:
`faults=... kinds=... violations=...`; exit code 1 where there is a violation, or too few faults were seen.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from fedlearn.host.logs import log_as_json
from tests.soak import in_process, real_faults
from tests.soak.field import Field
from tests.soak.in_process import InProcess
from tests.soak.schedule import Fault, Tally, draw

_LEAST = {"in process": 80, "real": 20}
_LEAST_KINDS = 12
_END_SECONDS = 180.0
_LAST_WORD_SECONDS = 150.0


def soak_in_process(folder: Path, seed: int) -> Tally:
    """The first half."""
    folder.mkdir()
    with (folder / "soak.log").open("w") as log:
        log_as_json(log)
        return InProcess(folder, draw(in_process.KINDS, seed, part="in process")).run()


def soak_real(folder: Path, seed: int, *, until: float) -> Tally:
    """The second half: faults go on until all were tried, or until so late that the last run could not end."""
    folder.mkdir()
    tally = Tally()
    field = Field(folder)
    try:
        with field.watched():
            field.soon(lambda: len(field.present()) == 4, 120)
            waiting = draw(real_faults.KINDS, seed, part="real")
            while waiting and time.monotonic() < until - _END_SECONDS:
                fault = _next(waiting, field)
                _bring(fault, field, tally)
            tally.unobserved += waiting
            field.finish(seconds=max(60.0, until - time.monotonic() - 60))
        tally.violations += field.told + field.check()
    finally:
        field.end()
        field.unmount()
    return tally


def _next(waiting: list[Fault], field: Field) -> Fault:
    """The first fault whose member is there; the others wait for theirs to come back."""
    deadline = time.monotonic() + _LAST_WORD_SECONDS
    while time.monotonic() < deadline:
        online = field.present()
        for fault in waiting:
            if set(real_faults.concerned(fault)) <= online:
                waiting.remove(fault)
                return fault
        time.sleep(1)
    return waiting.pop(0)


def _bring(fault: Fault, field: Field, tally: Tally) -> None:
    began = time.monotonic()
    with field.disturbing(real_faults.concerned(fault)):
        try:
            seen = real_faults.FAULTS[fault.kind][2](field, fault)
        except (OSError, ValueError, IndexError) as error:
            print(f"  {type(error).__name__}: {error}", file=sys.stderr)
            seen = False
    (tally.observed if seen else tally.unobserved).append(fault)
    word = "seen" if seen else "NOT SEEN"
    print(f"{time.strftime('%H:%M:%S')} {word} in {time.monotonic() - began:.0f} s: {fault}", file=sys.stderr)


def main() -> int:
    """Run both halves, or one."""
    parser = argparse.ArgumentParser(prog="tests.soak")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", choices=("in-process", "real"))
    parser.add_argument("--minutes", type=float, default=24.0)
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(130))  # what was started is ended
    until = time.monotonic() + 60 * options.minutes
    place, tally = Path(tempfile.mkdtemp(prefix="fl-soak-")), Tally()
    halves = {}
    if options.only != "real":
        halves["in process"] = soak_in_process(place / "in-process", options.seed)
    if options.only != "in-process":
        halves["real"] = soak_real(place / "real", options.seed, until=until)
    for part, half in halves.items():
        tally.add(half)
        if len(half.observed) < _LEAST[part]:
            tally.violations.append(f"{len(half.observed)} faults were seen {part}; expected at least {_LEAST[part]}")
    for fault in tally.unobserved:
        print(f"not seen: {fault}", file=sys.stderr)
    for violation in tally.violations:
        print(f"VIOLATION: {violation}", file=sys.stderr)
    if not tally.violations:
        shutil.rmtree(place, ignore_errors=True)
    print(tally.summary)
    return 1 if tally.violations or len(tally.kinds) < _LEAST_KINDS else 0


if __name__ == "__main__":
    sys.exit(main())
