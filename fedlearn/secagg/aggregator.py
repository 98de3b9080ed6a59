"""The server's half of one attempt: requests out, replies in, and in the end the sum and nothing else.

Driven stage by stage: send `requests()`, hand each reply to `receive` until nobody is waited for or the time is up,
then `close_stage()`; after the last stage `unmask()`. It makes every check that a client will make before it forwards,
so that one crooked client cannot make all refuse. It holds a running sum, never the vectors.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedlearn.crypto.agreement import AgreementKey
from fedlearn.crypto.signatures import verify
from fedlearn.errors import FedlearnError, ProtocolError
from fedlearn.privacy.quantization import Lanes
from fedlearn.secagg.masking import add_keystreams, check_words_hold
from fedlearn.secagg.messages import (
    REFUSAL,
    Advert,
    Envelope,
    MaskedRequest,
    Stage,
    decode_boxes,
    decode_masked,
    decode_shares,
    encode_advertise,
    encode_bitmap,
    encode_entries,
)
from fedlearn.secagg.recovery import Blame, Recovery
from fedlearn.secagg.stages import check_distinct_keys
from fedlearn.secagg.transcript import (
    CHECK_LANES,
    ID_BYTES,
    Context,
    commitment,
    hash_advertised,
    hash_context,
    hash_masking,
    pair_seed,
    self_seed,
)

__all__ = ["Aggregator", "AttemptFailedError", "Incident", "Request", "UnmaskedSum"]

# Any scalar shows a point of small order: all are multiples of eight.
_PROBE: Final = AgreementKey(bytes(range(32)))


class AttemptFailedError(FedlearnError):
    """Too few clients are left, or what they sent does not add up: no sum. What was sent counts as spent."""


@dataclass(frozen=True, slots=True)
class Request:
    """One client's request; the body is `head` | `tail`, and the tail (the model) is one object for all clients."""

    head: bytes
    tail: bytes = field(default=b"", repr=False)

    def to_bytes(self) -> bytes:
        """The body as one string."""
        return self.head + self.tail


@dataclass(frozen=True, slots=True)
class Incident:
    """A reply that was not used, for the coordinator's log."""

    stage: Stage
    client_id: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class UnmaskedSum:
    """The sum of the survivors' lanes, (d,) uint32 modulo 2^32; `masking_hash` is the transcript's c2."""

    lanes: Lanes = field(repr=False)
    survivors: tuple[bytes, ...]
    masking_hash: bytes
    blames: tuple[Blame, ...]


class Aggregator:
    """The server in one attempt.

    Guarantees:
        nothing is asked of anybody with fewer than `min_survivors` in a stage, or fewer than `threshold` in the last;
        for one client it never asks for both kinds of shares;
        a reply that does not verify changes nothing, and its sender is still waited for;
        a sum is returned only if secrets fit their commitments and the check words hold.
    """

    def __init__(
        self,
        context: Context,
        config: bytes,
        *,
        model: bytes,
        roster: Mapping[bytes, bytes],
        asked: Iterable[bytes],
        threads: int = 1,
    ) -> None:
        """`asked` are the members of `roster` in this cohort; `context.model_hash` is the SHA-256 of `model`.

        Raises:
            ProtocolError: the context's fields cannot hold, or more are asked than planned.
        """
        context.fields.check()
        self.context, self.roster = context, roster
        self.stage = Stage.ADVERTISE
        self.incidents: list[Incident] = []
        self.refused: set[bytes] = set()  # who refused a stage, under its signature
        self._model, self._threads = model, threads
        self._context_hash = hash_context(context)
        self._masking_hash = b""
        self._adverts: dict[bytes, Advert] = {}
        self._keys_seen: set[bytes] = set()
        self._boxes: dict[bytes, dict[bytes, bytes]] = {}  # by sender, then receiver
        self._total = np.zeros(0, dtype=np.uint32)
        self._survivors: list[bytes] = []
        self._signatures: dict[bytes, bytes] = {}
        self._shares: dict[bytes, list[int]] = {}  # by holder, one for each member of U2
        self._bitmap = b""
        members = sorted(asked)
        if len(members) > context.fields.planned_cohort or not set(members) <= set(roster):
            raise ProtocolError("more clients asked than planned, or not of the roster")
        self._ask(dict.fromkeys(members, Request(encode_advertise(context, config))))

    @property
    def waiting(self) -> frozenset[bytes]:
        """Whose reply in this stage is still to come."""
        return frozenset(self._waiting)

    @property
    def vectors_asked(self) -> bool:
        """Whether masked vectors were asked for: then the attempt counts as spent, whatever becomes of it."""
        return self.stage >= Stage.MASK

    def requests(self) -> dict[bytes, Request]:
        """This stage's requests by client."""
        return dict(self._requests)

    def receive(self, stage: Stage, client_id: bytes, data: bytes) -> bool:
        """Take a sealed reply; whether this client has now answered the stage, well or badly.

        False for what does not verify, for a stage that is closed, and for a client that is not waited for: the
        server goes on waiting. What was not used stands in `incidents`.
        """
        if stage is not self.stage or client_id not in self._waiting:
            self._note(stage, client_id, "late, or not asked for")
            return False
        try:
            reply = self._opened(client_id, data)
        except ProtocolError as error:
            self._note(stage, client_id, str(error))
            return False
        self._waiting.discard(client_id)
        try:
            self._take(client_id, reply)
        except ProtocolError as error:
            self._note(stage, client_id, str(error))
        return True

    def close_stage(self) -> None:
        """Go on with those who answered: the next stage's `requests`, or after the last `unmask`.

        Raises:
            AttemptFailedError: too few are left.
        """
        match self.stage:
            case Stage.ADVERTISE:
                self._ask_for_shares()
            case Stage.SHARE:
                self._ask_for_vectors()
            case Stage.MASK:
                self._ask_for_signatures()
            case Stage.CONSISTENCY:
                self._ask_for_unmasking()
            case Stage.UNMASK:
                self._waiting.clear()

    def unmask(self) -> UnmaskedSum:
        """The sum, after the last stage was closed.

        Raises:
            AttemptFailedError: fewer than `threshold` replies, a secret that cannot be recovered, or a sum whose check
                words do not hold.
        """
        self._require(self._shares, self.context.fields.threshold, "sent their shares")
        points = {client: rank for rank, client in enumerate(self._adverts, start=1) if client in self._shares}
        recovery = Recovery(points, self.context.fields.threshold)
        plus, minus = self._mask_seeds(recovery)
        # What clients added is subtracted, and the other way round.
        add_keystreams(self._total, minus, plus, threads=self._threads)
        if not check_words_hold(self._total, self._masking_hash, len(self._survivors)):
            raise AttemptFailedError("the check words of the sum do not hold: a client masked or counted wrongly")
        blames = tuple(recovery.blames)
        return UnmaskedSum(self._total[:-CHECK_LANES], tuple(self._survivors), self._masking_hash, blames)

    def _opened(self, client_id: bytes, data: bytes) -> memoryview:
        """The reply in its envelope."""
        public = self.roster[client_id]
        envelope = Envelope(self.context.position, self.stage, client_id, self._digests[client_id])
        try:
            return envelope.open(public, data)
        except ProtocolError:
            if self.stage is not Stage.MASK or data[: len(REFUSAL)] != REFUSAL:
                raise
        # A client that lost its state cannot take the request apart: it refuses with the hash of all of it.
        digest = hashlib.sha256(self._requests[client_id].to_bytes()).digest()
        return Envelope(self.context.position, self.stage, client_id, digest).open(public, data)

    def _take(self, client_id: bytes, reply: memoryview) -> None:
        if reply == REFUSAL:
            self.refused.add(client_id)
            raise ProtocolError("refused")
        match self.stage:
            case Stage.ADVERTISE:
                self._take_advert(client_id, bytes(reply))
            case Stage.SHARE:
                peers = [client for client in self._adverts if client != client_id]
                self._boxes[client_id] = decode_boxes(bytes(reply), peers)
            case Stage.MASK:
                np.add(self._total, decode_masked(reply, len(self._total)), out=self._total)
                self._survivors.append(client_id)
            case Stage.CONSISTENCY:
                message = self._masking_hash + self._bitmap
                if not verify(self.roster[client_id], bytes(reply), purpose="u3", message=message):
                    raise ProtocolError("a signature on other survivors")
                self._signatures[client_id] = bytes(reply)
            case Stage.UNMASK:
                self._shares[client_id] = decode_shares(reply, len(self._boxes))

    def _take_advert(self, client_id: bytes, data: bytes) -> None:
        advert = Advert.from_bytes(data)
        if advert.client_id != client_id or not advert.is_valid(self.roster[client_id], self._context_hash):
            raise ProtocolError("an advert of another client or context")
        check_distinct_keys([advert])
        _PROBE.exchange(advert.mask_key)
        _PROBE.exchange(advert.channel_key)
        values = {advert.mask_key, advert.channel_key, advert.commitment}
        if values & self._keys_seen:  # of two equal keys the later arrival goes
            raise ProtocolError("a key that another client has sent before")
        self._keys_seen |= values
        self._adverts[client_id] = advert

    def _ask_for_shares(self) -> None:
        self._require(self._adverts, self.context.fields.min_survivors, "advertised")
        self._adverts = dict(sorted(self._adverts.items()))
        body = b"".join(advert.to_bytes() for advert in self._adverts.values())
        self._next(dict.fromkeys(self._adverts, Request(body)))

    def _ask_for_vectors(self) -> None:
        self._require(self._boxes, self.context.fields.min_survivors, "shared")
        self._boxes = dict(sorted(self._boxes.items()))  # its keys are U2
        adverts = (advert.to_bytes() for advert in self._adverts.values())
        bitmap = encode_bitmap(list(self._adverts), self._boxes)
        self._masking_hash = hash_masking(hash_advertised(self._context_hash, adverts), bitmap)
        self._total = np.zeros(self.context.fields.lanes, dtype=np.uint32)
        requests, digests = {}, {}
        for receiver in self._boxes:
            boxes = encode_entries({s: to[receiver] for s, to in self._boxes.items() if s != receiver})
            requests[receiver] = Request(bitmap + boxes, self._model)
            digests[receiver] = MaskedRequest(bitmap, boxes, b"", self.context.model_hash).digest
        self._next(requests, digests)

    def _ask_for_signatures(self) -> None:
        self._require(self._survivors, self.context.fields.min_survivors, "sent a vector")
        self._survivors.sort()
        self._bitmap = encode_bitmap(list(self._adverts), self._survivors)
        self._next(dict.fromkeys(self._survivors, Request(self._bitmap)))

    def _ask_for_unmasking(self) -> None:
        self._require(self._signatures, self.context.fields.threshold, "signed")
        self._next(dict.fromkeys(sorted(self._signatures), Request(encode_entries(self._signatures))))

    def _next(self, requests: Mapping[bytes, Request], digests: Mapping[bytes, bytes] | None = None) -> None:
        self.stage = Stage(self.stage + 1)
        self._ask(requests, digests)

    def _ask(self, requests: Mapping[bytes, Request], digests: Mapping[bytes, bytes] | None = None) -> None:
        self._requests = dict(requests)
        self._waiting = set(requests)
        if digests is None:
            by_head = {request.head: hashlib.sha256(request.head).digest() for request in set(requests.values())}
            digests = {client: by_head[request.head] for client, request in requests.items()}
        self._digests = dict(digests)

    def _require(self, clients: Iterable[bytes], least: int, did: str) -> None:
        count = len(list(clients))
        if count < least:
            raise AttemptFailedError(
                f"{count} clients {did}; expected at least {least}: the attempt ends, nothing is unmasked"
            )

    def _mask_seeds(self, recovery: Recovery) -> tuple[list[bytes], list[bytes]]:
        """The seeds whose keystreams the survivors added, and those that they subtracted, and that are still there."""
        survivors = set(self._survivors)
        plus: list[bytes] = []
        minus: list[bytes] = []
        for position, dealer in enumerate(self._boxes):
            shares = {holder: values[position] for holder, values in self._shares.items()}
            if dealer in survivors:
                plus.append(self_seed(self._self_mask_seed(recovery, dealer, shares), self._masking_hash, dealer))
                continue
            key = self._mask_key(recovery, dealer, shares)
            for survivor in self._survivors:
                seed = self._pair_seed(key, dealer, survivor)
                (plus if dealer > survivor else minus).append(seed)
        return plus, minus

    def _self_mask_seed(self, recovery: Recovery, dealer: bytes, shares: Mapping[bytes, int]) -> bytes:
        committed = self._adverts[dealer].commitment
        secret = recovery.secret(dealer, shares, lambda b: commitment(self._context_hash, dealer, b) == committed)
        if secret is None:
            raise AttemptFailedError("no set of shares gives a self-mask seed that fits its commitment")
        return secret

    def _mask_key(self, recovery: Recovery, dealer: bytes, shares: Mapping[bytes, int]) -> AgreementKey:
        public = self._adverts[dealer].mask_key
        secret = recovery.secret(dealer, shares, lambda seed: AgreementKey(seed).public == public)
        if secret is None:
            raise AttemptFailedError("no set of shares gives a mask seed that fits its public key")
        return AgreementKey(secret)

    def _pair_seed(self, key: AgreementKey, dropped: bytes, survivor: bytes) -> bytes:
        pair = [(client, self._adverts[client].mask_key) for client in sorted((dropped, survivor))]
        shared = key.exchange(self._adverts[survivor].mask_key)
        return pair_seed(shared, self._masking_hash, low=pair[0], high=pair[1])

    def _note(self, stage: Stage, client_id: bytes, reason: str) -> None:
        self.incidents.append(Incident(stage, client_id[:ID_BYTES], reason))
