"""What must never happen, whatever fault comes: each check gives a sentence for every time that it did."""

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fedlearn.certificate.verify import verify_certificate
from fedlearn.ledger import Ledger
from fedlearn.privacy.accounting import epsilon_of
from fedlearn.run.checkpoint import RunFolder
from tests.soak.witness import Attempt, Witness

OFFLINE_SECONDS = 120.0


def different_releases(witness: Witness) -> Iterator[str]:
    """Two different vectors of one member for one attempt: their difference is a difference of updates, unmasked."""
    replies: dict[tuple[int, Attempt], set[bytes]] = defaultdict(set)
    for vector in witness.vectors():
        replies[vector.member, vector.attempt].add(vector.reply)
    for (member, attempt), different in replies.items():
        if len(different) > 1:
            yield f"member {member} gave {len(different)} different vectors for attempt {attempt}"


def unmasked_below_threshold(witness: Witness, *, min_survivors: int) -> Iterator[str]:
    """Shares that an agent gave for an attempt in which too few vectors exist."""
    vectors: dict[Attempt, set[int]] = defaultdict(set)
    for exchange in witness.seen:
        if exchange.refused:
            continue
        if exchange.stage == "masked":
            vectors[exchange.attempt].add(exchange.member)
        if exchange.stage == "unmask" and len(vectors[exchange.attempt]) < min_survivors:
            yield f"member {exchange.member} unmasks {len(vectors[exchange.attempt])} vectors of {exchange.attempt}"


def booked_too_little(
    witness: Witness, ledgers: Mapping[int, Path], *, dataset: str, max_epsilon: float, delta: float
) -> Iterator[str]:
    """A vector that left without a release in its holder's ledger, or an epsilon below that of what left."""
    for member, path in ledgers.items():
        left = {vector.attempt for vector in witness.vectors() if vector.member == member}
        if not left:
            continue
        with closing(Ledger(path)) as ledger:
            booked = ledger.events(dataset)
            spent = ledger.spent(dataset)[1]
        released = {(each.session, each.round, each.attempt): each.event for each in booked if each.released}
        for attempt in left - set(released):
            yield f"a vector of member {member} left for {attempt}, and its ledger knows of none"
        events = Counter(released[attempt] for attempt in left & set(released))
        least = epsilon_of(list(events.items()), delta=delta, epsilon_ceiling=max_epsilon)
        if spent < least:
            yield f"the ledger of member {member} says epsilon {spent}; what left is worth {least}"


def unbooked_attempts(witness: Witness, run: RunFolder) -> Iterator[str]:
    """A vector of a finished run's session that the coordinator does not count as spent."""
    stored = run.load_checkpoint()
    if stored is None:
        return
    session = stored[0].session
    known = {(session, line["round"], line["attempt"]) for line in run.lines("events.jsonl")}
    for attempt in {vector.attempt for vector in witness.vectors() if vector.attempt[0] == session} - known:
        yield f"{run.path.name}: vectors left for {attempt}, and no event says so"
    if len(known) > json.loads(run.file("summary.json").read_text())["attempts"]:
        yield f"{run.path.name}: more attempts released than the summary counts"


def models_that_differ(run: RunFolder, kept: Iterable[Path]) -> Iterator[str]:
    """A certificate that does not hold for the model, or a holder's copy of the final model that is another."""
    model = run.file("model.safetensors").read_bytes()
    verified = verify_certificate(run.file("certificate.json").read_bytes(), model, roster=run.roster())
    for check in verified.checks:
        if not check.passed:
            yield f"{run.path.name}: the certificate does not hold: {check.name}: {check.detail}"
    for path in kept:
        if path.read_bytes() != model:
            yield f"{path}: not the model of {run.path.name}"


def shown(paths: Iterable[Path], forbidden: Iterable[bytes]) -> Iterator[str]:
    """A secret, or an exception's text, in a file that others may see: as it is, in hexadecimal, or as JSON has it."""
    signs = [sign for each in forbidden for sign in (each, each.hex().encode())]
    for path in paths:
        content = path.read_bytes()
        for sign in signs:
            if sign in content:
                yield f"{path}: shows what it must not ({hashlib.sha256(sign).hexdigest()[:8]})"


def tracebacks(said: Mapping[str, str]) -> Iterator[str]:
    """A traceback in what a user was shown; `said`: where -> what."""
    for where, text in said.items():
        if "Traceback (most recent call last)" in text:
            yield f"{where}: a traceback"


@dataclass
class Presence:
    """How long each member has been away since the last fault that concerned it ended; `clock` in seconds."""

    clock: Callable[[], float] = time.monotonic
    limit: float = OFFLINE_SECONDS
    _ended: dict[str, float] = field(default_factory=dict)
    _away: dict[str, float] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def fault_begins(self, member: str) -> None:
        """Until it ends, the member may be away."""
        self._ended[member] = float("inf")

    def fault_ended(self, member: str) -> None:
        """From now on it has its time to come back."""
        self._ended[member] = self.clock()
        self._told.discard(member)

    def see(self, member: str, *, online: bool) -> Iterator[str]:
        """What is known of a member now; a violation is told once."""
        if online:
            self._away.pop(member, None)
            self._told.discard(member)
            return
        since = max(self._away.setdefault(member, self.clock()), self._ended.get(member, 0.0))
        if self.clock() - since > self.limit and member not in self._told:
            self._told.add(member)
            yield f"{member} is offline {self.clock() - since:.0f} s after its fault ended"


@dataclass
class Pulse:
    """Whether something goes on: `see` is given how far it is."""

    limit: float
    clock: Callable[[], float] = time.monotonic
    _last: object = None
    _since: float = field(default=-1.0)

    def see(self, where: object) -> Iterator[str]:
        """A violation when it stood still for longer than `limit`; told once for each place."""
        if where != self._last or self._since < 0:
            self._last, self._since = where, self.clock()
        elif self.clock() - self._since > self.limit:
            self._since = float("inf")
            yield f"nothing goes on for {self.limit:.0f} s at {where}"
