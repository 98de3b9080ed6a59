"""A whole federation in one process: real participants, a real aggregator, and faults where a test wants them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import ProtocolError, RefusedError
from fedlearn.privacy.quantization import Lanes
from fedlearn.privacy.request import threshold_of
from fedlearn.secagg.aggregator import Aggregator, UnmaskedSum
from fedlearn.secagg.messages import Envelope, MaskedRequest, Stage
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.stages import Member
from fedlearn.secagg.transcript import Context, ContextFields, Position

SESSION = bytes(range(16))
MODEL = b"the canonical bytes of a model"
CONFIG = b'{"run":{"rounds":20}}'


def fixed_entropy(name: str) -> Entropy:
    """Random bytes that a test can repeat."""
    return stream_entropy(lambda size: hashlib.shake_256(name.encode()).digest(size))


def client_id(number: int) -> bytes:
    """16 bytes, so that clients sort by number."""
    return number.to_bytes(16, "big")


def terms_for(asked: int, dimension: int, **changes: object) -> ContextFields:
    """ContextFields that hold for a cohort of `asked`, M = t and the most colluders, unless changed."""
    threshold = threshold_of(asked)
    fields = ContextFields(
        config_hash=hashlib.sha256(CONFIG).digest(),
        roster_hash=hashlib.sha256(b"roster").digest(),
        layout_hash=hashlib.sha256(b"layout").digest(),
        privacy_mode=1,
        planned_cohort=asked,
        threshold=threshold,
        min_survivors=threshold,
        max_colluders=min(2 * threshold - asked - 1, threshold - 2),
        dimension=dimension,
        scale_bits=10,
        sensitivity=1000,
        clip_bound=10_000,
        noise_std=500,
        sampling_numerator=1,
        sampling_denominator=1,
        stage_seconds=(60, 60, 600, 60, 60),
    )
    return replace(fields, **changes)  # type: ignore[arg-type]


class Disk:
    """The durable (round, attempt) of one session."""

    def __init__(self) -> None:
        self.last = (-1, -1)

    def advance(self, round_number: int, attempt: int) -> None:
        if (round_number, attempt) <= self.last:
            raise ProtocolError("(round, attempt) does not grow")
        self.last = (round_number, attempt)


@dataclass
class Client:
    """A participant with its vector; `contributions` and `releases` count what its agent would book."""

    member: Member
    vector: Lanes
    fields: ContextFields
    entropy: Entropy
    kind: type[Participant] = Participant
    session: bytes = SESSION
    disk: Disk = field(default_factory=Disk)
    reasons: list[str] = field(default_factory=list)
    contributions: int = 0
    releases: int = 0
    during_work: Callable[[], None] | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process: only what is on disk is left."""
        self.participant = self.kind(
            self.member,
            self.session,
            entropy=self.entropy,
            agree=self.agree,
            advance=self.disk.advance,
            on_refusal=lambda _, error: self.reasons.append(str(error)),
            threads=self.threads,
        )

    def agree(self, config: bytes) -> ContextFields:
        if config != CONFIG:
            raise RefusedError("the policy does not accept this run")
        return self.fields

    def contribute(self, _: bytes | memoryview) -> Lanes:
        self.contributions += 1
        if self.during_work is not None:
            self.during_work()
        return self.vector

    def release(self) -> None:
        self.releases += 1

    def sealed(self, stage: Stage, position: Position, body: bytes) -> bytes:
        """What this client's agent returns for one frame."""
        if stage is Stage.MASK:
            return self.participant.answer_masked(position, body, self.contribute, self.release)
        return self.participant.answer(stage, position, body)

    def reply(self, stage: Stage, position: Position, body: bytes) -> bytes:
        """The same without its envelope."""
        return self.sealed(stage, position, body)[:-64]


class Federation:
    """`asked` clients, numbered from 1, and their roster. `kinds` gives patched participants to some of them."""

    def __init__(
        self,
        asked: int = 4,
        dimension: int = 5,
        *,
        kinds: Mapping[int, type[Participant]] | None = None,
        entropy: Callable[[int], Entropy] | None = None,
        vectors: Sequence[Lanes] | None = None,
        threads: int = 1,
        **changes: object,
    ) -> None:
        self.fields = terms_for(asked, dimension, **changes)
        keys = {number: SigningKey(hashlib.sha256(b"key %d" % number).digest()) for number in range(1, asked + 1)}
        self.roster = {client_id(number): key.public for number, key in keys.items()}
        self.position = Position(SESSION, 1, 0)
        self.threads = threads
        self.clients: dict[bytes, Client] = {}
        for number, key in keys.items():
            source = (entropy or (lambda n: fixed_entropy(f"client {n}")))(number)
            member = Member(client_id(number), key, self.roster)
            vector = vectors[number - 1] if vectors is not None else random_lanes(f"vector {number}", dimension)
            kind = (kinds or {}).get(number, Participant)
            self.clients[client_id(number)] = Client(member, vector, self.fields, source, kind, threads=threads)

    def __getitem__(self, number: int) -> Client:
        return self.clients[client_id(number)]

    @property
    def ids(self) -> list[bytes]:
        return list(self.clients)

    def context(self, *, model: bytes = MODEL, **changes: object) -> Context:
        """The context of the current position, its fields changed if a test says so."""
        fields = replace(self.fields, **changes)  # type: ignore[arg-type]
        return Context(self.position, hashlib.sha256(model).digest(), fields)

    def aggregator(self, asked: Iterable[bytes] | None = None) -> Aggregator:
        return Aggregator(
            self.context(),
            CONFIG,
            model=MODEL,
            roster=self.roster,
            asked=self.ids if asked is None else asked,
            threads=self.threads,
        )

    def play(self, lost: Mapping[Stage, Iterable[int]] | None = None) -> UnmaskedSum:
        """One honest attempt. `lost`: whose replies do not arrive from this stage on."""
        aggregator = self.aggregator()
        gone: set[bytes] = set()
        for stage in Stage:
            gone |= {client_id(number) for number in (lost or {}).get(stage, ())}
            self.exchange(aggregator, gone)
            aggregator.close_stage()
        return aggregator.unmask()

    def exchange(self, aggregator: Aggregator, gone: Iterable[bytes] = ()) -> None:
        """One stage: every client still waited for answers, the replies of `gone` are lost."""
        requests = aggregator.requests()
        for client in sorted(aggregator.waiting):
            request = requests[client]
            sealed = self.clients[client].sealed(aggregator.stage, self.position, request.to_bytes())
            if client not in set(gone) and not aggregator.receive(aggregator.stage, client, sealed):
                raise AssertionError("a genuine reply is taken")

    def advance(self, aggregator: Aggregator, until: Stage) -> None:
        """Play honestly until `until` is the stage to be played."""
        while aggregator.stage < until:
            self.exchange(aggregator)
            aggregator.close_stage()

    def sum_of(self, numbers: Iterable[int]) -> Lanes:
        """The plain sum modulo 2^32."""
        total = np.zeros(self.fields.dimension, dtype=np.uint32)
        for number in numbers:
            total += self[number].vector
        return total


def random_lanes(name: str, dimension: int) -> Lanes:
    """(d,) lanes, uniform and repeatable."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * dimension), dtype="<u4").astype(np.uint32)


def sealed_by(client: Client, stage: Stage, position: Position, body: bytes, reply: bytes) -> bytes:
    """A reply of a crooked client: any bytes, properly signed."""
    digest = hashlib.sha256(body).digest()
    return Envelope(position, stage, client.member.client_id, digest).seal(client.member.key, reply)


def sealed_vector(
    client: Client, federation: Federation, request: bytes, members: Sequence[bytes], reply: bytes
) -> bytes:
    """The same in stage 2, whose requests have a digest of their own."""
    digest = MaskedRequest.from_bytes(request, members).digest
    return Envelope(federation.position, Stage.MASK, client.member.client_id, digest).seal(client.member.key, reply)
