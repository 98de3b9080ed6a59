"""Stage "masked" for a whole cohort: reserve -> read records and train -> release -> reply, and in no other order."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fedlearn.crypto.keystream import Entropy
from fedlearn.data.dataset import Dataset
from fedlearn.errors import FedlearnError, ProtocolError, RefusedError
from fedlearn.holder.frames import REFUSAL
from fedlearn.ledger import Ledger, Reservation
from fedlearn.model.layout import read_model
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import Lanes
from fedlearn.round.agreement import Agreement
from fedlearn.round.contribution import Contributor, contribute

__all__ = ["Contributed", "PendingReply", "answer_all", "contributed"]

# Rows of a cohort are computed in chunks, so that the float64 vectors of one chunk stay below 128 MiB.
_CHUNK_ENTRIES = 1 << 24

# The model is warm and shared, and so are the numerical libraries' threads: a process does one thing at a time.
_working = threading.Lock()


# What clients send, (n, d): as `contribute` makes it here, or wherever a simulation has it made.
Contributed = Callable[[Agreement, Vector, Sequence[Contributor], Entropy], Lanes]


def contributed(agreement: Agreement, weights: Vector, clients: Sequence[Contributor], entropy: Entropy) -> Lanes:
    """`contribute` with what the clients agreed to."""
    return contribute(
        weights,
        clients,
        work=agreement.work,
        stacked=agreement.stacked,
        mechanism=agreement.mechanism,
        plan=agreement.plan,
        entropy=entropy,
    )


@dataclass(slots=True)
class PendingReply:
    """One client's turn to contribute. Exactly one of `finish` and `refuse` is called; `reply` is what it gave.

    All turns that are taken together have one ledger, one entropy and one way to contribute: those of their process.
    `stopped` says whether the attempt was ended meanwhile, so that nothing must be released for it.
    """

    dataset_id: str
    position: tuple[str, int, int]  # session, round, attempt
    contributor: Contributor
    fingerprint: Callable[[bytes], bytes] | None
    agreement: Agreement
    ledger: Ledger
    entropy: Entropy = field(repr=False)
    model: bytes | memoryview = field(repr=False)
    model_hash: bytes
    finish: Callable[[Lanes], bytes]
    refuse: Callable[[FedlearnError], bytes]
    stopped: Callable[[], bool] = lambda: False
    contributed: Contributed = field(default=contributed, repr=False)
    reply: bytes | None = None
    reservation: int | None = None


def answer_all(answers: Sequence[bytes | PendingReply]) -> list[bytes]:
    """The replies of several agents of one process, in order: those given, and those whose turn it is to be made."""
    turns = [answer for answer in answers if isinstance(answer, PendingReply)]
    if turns:
        with _working:
            take_turns(turns, ledger=turns[0].ledger, entropy=turns[0].entropy)
    return [(answer.reply or REFUSAL) if isinstance(answer, PendingReply) else answer for answer in answers]


def take_turns(turns: Sequence[PendingReply], *, ledger: Ledger, entropy: Entropy) -> None:
    """Answer all turns. Reservations and releases are one transaction each; clip, truncation and noise are per client.

    Guarantees:
        no record is read for a turn whose release the ledger refuses, and no row of it stays behind;
        no byte of a vector is made into a reply before its release is on disk.
    """
    groups: dict[tuple[int, bytes], list[PendingReply]] = {}
    for turn in turns:
        groups.setdefault((id(turn.agreement), turn.model_hash), []).append(turn)
    for group in groups.values():
        agreement = group[0].agreement
        reserved = _reserve(group, ledger)
        size = max(1, _CHUNK_ENTRIES // max(1, agreement.layout.dimension))
        for first in range(0, len(reserved), size):
            _contribute(reserved[first : first + size], ledger=ledger, entropy=entropy)


def _reserve(group: Sequence[PendingReply], ledger: Ledger) -> Sequence[PendingReply]:
    """Reserve the release of each turn; whoever's budget refuses is answered with a refusal and left out."""
    if group[0].agreement.plan.ledger_event is None:
        return group
    entries = [_reservation(turn) for turn in group]
    try:
        for turn, reservation in zip(group, ledger.reserve(entries), strict=True):
            turn.reservation = reservation
        return group
    except RefusedError:
        pass  # one of them: ask for each by itself
    reserved = []
    for turn, entry in zip(group, entries, strict=True):
        try:
            turn.reservation = ledger.reserve([entry])[0]
            reserved.append(turn)
        except RefusedError as error:
            turn.reply = turn.refuse(error)
    return reserved


def _reservation(turn: PendingReply) -> Reservation:
    event = turn.agreement.plan.ledger_event
    assert event is not None
    session, round_number, attempt = turn.position
    return Reservation(
        dataset_id=turn.dataset_id,
        session=session,
        round=round_number,
        attempt=attempt,
        event=event.to_bytes(),
        max_releases=turn.agreement.plan.releases,
    )


def _contribute(chunk: Sequence[PendingReply], *, ledger: Ledger, entropy: Entropy) -> None:
    """One chunk of turns whose releases are reserved; whatever goes wrong, each turn ends with a reply."""
    try:
        weights = read_model(bytes(chunk[0].model), chunk[0].agreement.layout)
    except ProtocolError as error:  # nothing was read, so nothing is spent
        ledger.void(_reservations(chunk))
        _refuse(chunk, error)
        return
    try:
        lanes = _release(weights, chunk, ledger=ledger, entropy=entropy)
    except FedlearnError as error:
        _refuse(chunk, error)  # a full disk, say: what is reserved stays spent
        return
    except BaseException:
        _refuse(chunk, ProtocolError("the work for a vector broke off"))
        raise
    for turn, row in zip(chunk, lanes, strict=True):
        turn.reply = turn.finish(row)


@dataclass(slots=True)
class _Witness:
    """Reads one turn's records; where its holder keeps fingerprints, theirs, which is None until they are read."""

    read: Callable[[], Dataset]
    stored: Callable[[bytes], bytes] | None
    salt: bytes
    fingerprint: bytes | None = None

    def records(self) -> Dataset:
        records = self.read()
        if self.stored is not None:
            self.fingerprint = self.stored(self.salt)
        return records


def _release(weights: Vector, chunk: Sequence[PendingReply], *, ledger: Ledger, entropy: Entropy) -> Lanes:
    """The noised vectors of a chunk, released, each with the fingerprint of its records where its holder keeps them.

    Records that are known under another id are refused here, after the reservation, which stays spent. Elsewhere a
    failure at this point becomes zeros and noise, for a refusal would show something about the records. This one does
    too: that the holder registered the same records twice. It is refused all the same, because zeros would go on
    spending unseen, because it says nothing about a holder that has one id for its records, and because who renames a
    data set can confirm it before the first run, and then nothing is compared.
    """
    agreement = chunk[0].agreement
    salt = ledger.salt() if any(turn.fingerprint for turn in chunk) else b""
    witnesses = [_Witness(turn.contributor.records, turn.fingerprint, salt) for turn in chunk]
    seeing = [replace(turn.contributor, records=seen.records) for turn, seen in zip(chunk, witnesses, strict=True)]
    lanes = chunk[0].contributed(agreement, weights, seeing, entropy)
    # An attempt that was ended meanwhile releases nothing: `finish` then gives a refusal.
    ledger.void(_reservations([turn for turn in chunk if turn.stopped()]))
    fingerprints = {
        turn.reservation: seen.fingerprint
        for turn, seen in zip(chunk, witnesses, strict=True)
        if turn.reservation is not None and seen.fingerprint is not None
    }
    ledger.release(_reservations([turn for turn in chunk if not turn.stopped()]), fingerprints)
    return lanes


def _reservations(turns: Sequence[PendingReply]) -> list[int]:
    return [turn.reservation for turn in turns if turn.reservation is not None]


def _refuse(turns: Sequence[PendingReply], error: FedlearnError) -> None:
    for turn in turns:
        turn.reply = turn.refuse(error)
