"""The coordinator's book of runs, and what to do next about one: decided from facts, without a process or a clock."""

import enum
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.errors import ConfigError
from fedlearn.host.durable import open_database

__all__ = ["ENDED", "BookedRun", "Facts", "RunKeeper", "Runs", "Step"]

# waiting -> running -> finished | failed | stopped
ENDED: Final = ("finished", "failed", "stopped")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS run (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    number TEXT,
    to_stop INTEGER NOT NULL DEFAULT 0
) STRICT;
"""
_START_SECONDS: Final = 60.0
_SILENT_SECONDS: Final = 30.0
_VAIN_STARTS: Final = 5


@dataclass(frozen=True, slots=True)
class BookedRun:
    """One run: `number` is Flower's for it, None before it was submitted; `reason` says why it failed."""

    id: str
    state: str
    reason: str
    number: int | None
    to_stop: bool


class Runs:
    """The book, in one SQLite file; any number of processes may have it open."""

    def __init__(self, path: Path) -> None:
        """Open the book, or begin one.

        Raises:
            ConfigError: the file is no such book.
        """
        self._lock = threading.Lock()
        try:
            self._database = open_database(path, _SCHEMA)
            path.chmod(0o600)
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path}: not a book of runs ({error}); restore it from a backup") from None

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, run: str) -> None:
        """Book a run that waits for its turn."""
        with self._writing() as database:
            database.execute("INSERT INTO run (id, state) VALUES (?, 'waiting')", (run,))

    def all(self) -> list[BookedRun]:
        """Every run, the first booked first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, state, reason, number, to_stop FROM run ORDER BY rowid"
            ).fetchall()
        return [
            BookedRun(run, state, reason, None if number is None else int(number), bool(to_stop))
            for run, state, reason, number, to_stop in rows
        ]

    def find(self, run: str) -> BookedRun:
        """One run.

        Raises:
            ConfigError: there is no such run.
        """
        booked = {known.id: known for known in self.all()}
        if run not in booked:
            known = ", ".join(list(booked)[-5:])
            raise ConfigError(f"{run}: no such run; {f'the last ones are {known}' if known else 'there is none yet'}")
        return booked[run]

    def turn(self) -> BookedRun | None:
        """The run whose turn it is: one at a time, in the order in which they were booked."""
        return next((run for run in self.all() if run.state not in ENDED), None)

    def submitted(self, run: str, number: int) -> None:
        """Note that Flower has it under this number, which may have 64 bits: more than SQLite's integers hold."""
        with self._writing() as database:
            database.execute("UPDATE run SET state = 'running', number = ? WHERE id = ?", (str(number), run))

    def end(self, run: str, state: str, reason: str = "") -> None:
        """Note how it ended."""
        assert state in ENDED, f"{state!r} is no end"
        with self._writing() as database:
            database.execute("UPDATE run SET state = ?, reason = ? WHERE id = ?", (state, reason, run))

    def stop(self, run: str) -> None:
        """Note that the operator wants it to end."""
        with self._writing() as database:
            database.execute("UPDATE run SET to_stop = 1 WHERE id = ?", (run,))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._database  # one statement, which SQLite commits by itself


class Step(enum.Enum):
    """What to do about a run."""

    WAIT = "wait"
    SUBMIT = "give it to Flower, the one before it ended"
    RESTART = "restart Flower's SuperLink, then submit"
    CONCLUDE = "write model, summary and report"
    FINISHED = "book it as finished"
    FAILED = "book it as failed"
    GIVE_UP = "book it as failed: it does not come to life"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is seen of a run. `now` is of a clock that nobody sets, `last_sign` of another: it differs or does not.

    `alive`: a process holds the run; `last_sign`: when it last said so; `trained`: the last round is in the checkpoint;
    `done`: the coordinator asked for attestations too; `concluded`: the summary is written; `failed`: the coordinator
    said why it cannot go on; `room`: the disk is not full.
    """

    now: float
    rounds: int = 0
    alive: bool = False
    last_sign: float | None = None
    trained: bool = False
    done: bool = False
    concluded: bool = False
    failed: bool = False
    room: bool = True


class RunKeeper:
    """Keeps one run going (docs/specification/faults.md F12 and F14).

    Guarantees:
        a run that gave no sign of life 60 s after it was submitted (then 120 s, 240 s ...) is so again, over a fresh
            SuperLink;
        a run whose process is gone is submitted again, one that is silent for 30 s over a fresh SuperLink;
        Flower's word that a run goes on is believed in no case;
        after 5 starts without a round between them it is given up; one that is trained is concluded as it is;
        while the disk is full nothing is started, and that costs no start.
    """

    def __init__(self) -> None:
        self._submitted: float | None = None
        self._sign: float | None = None
        self._heard: float | None = None  # when the last sign was seen, since it was submitted
        self._starts, self._rounds = 0, -1

    def submitted(self, now: float) -> None:
        """Flower took it."""
        self._submitted, self._heard = now, None

    def interrupted(self) -> None:
        """The SuperLink is another process than the one that took it."""
        self._submitted = None

    def decide(self, facts: Facts) -> Step:
        """The next step."""
        if facts.concluded:
            return Step.FINISHED
        if facts.failed:
            return Step.FAILED
        if facts.done:
            # It may still be on its way out; whoever concludes must be the only one.
            return Step.WAIT if facts.alive or not facts.room else Step.CONCLUDE
        if facts.last_sign != self._sign:
            self._sign, self._heard = facts.last_sign, facts.now
        if self._submitted is None:
            return self._start(facts, Step.RESTART if facts.alive else Step.SUBMIT)
        if self._heard is None:
            # Twice as long with every try: a machine with too much to do is not helped by starting over and over.
            late = facts.now - self._submitted > _START_SECONDS * 2 ** (self._starts - 1)
            return self._start(facts, Step.RESTART) if late else Step.WAIT
        if not facts.alive:
            return self._start(facts, Step.SUBMIT)
        silent = facts.now - self._heard > _SILENT_SECONDS
        return self._start(facts, Step.RESTART) if silent else Step.WAIT

    def _start(self, facts: Facts, step: Step) -> Step:
        """The same, unless it was tried often enough."""
        if facts.rounds > self._rounds:
            self._starts, self._rounds = 0, facts.rounds
        if not facts.room:
            return Step.WAIT
        if self._starts >= _VAIN_STARTS:
            return Step.CONCLUDE if facts.trained else Step.GIVE_UP
        self._starts += 1
        self._submitted = None
        return step
