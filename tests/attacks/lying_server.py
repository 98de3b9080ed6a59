"""A server that says what it likes, to real clients, and takes vectors apart where it gets the secrets."""

from collections.abc import Iterable, Mapping

import numpy as np
from small_federation import CONFIG, MODEL, Federation, client_id

from fedlearn.crypto.agreement import AgreementKey
from fedlearn.crypto.shamir import combine, decode_share
from fedlearn.privacy.quantization import Lanes
from fedlearn.secagg.masking import add_keystreams
from fedlearn.secagg.messages import (
    REFUSAL,
    Advert,
    Stage,
    decode_boxes,
    encode_advertise,
    encode_bitmap,
    encode_entries,
)
from fedlearn.secagg.transcript import (
    CHECK_LANES,
    Context,
    hash_advertised,
    hash_context,
    hash_masking,
    pair_seed,
    self_seed,
)

Shares = dict[bytes, dict[bytes, int]]  # {holder: {dealer: share}}


class LyingServer:
    """Drives `federation`; every reply is without its envelope, REFUSAL included."""

    def __init__(self, federation: Federation) -> None:
        self.federation, self.position = federation, federation.position
        self.adverts: dict[bytes, bytes] = {}
        self.boxes: dict[bytes, dict[bytes, bytes]] = {}

    @property
    def members(self) -> list[bytes]:
        return sorted(self.adverts)

    def ask(self, client: bytes, stage: Stage, body: bytes) -> bytes:
        return self.federation.clients[client].reply(stage, self.position, body)

    def advertise(self, contexts: Mapping[bytes, Context] | None = None) -> None:
        for client in self.federation.ids:
            context = (contexts or {}).get(client, self.federation.context())
            self.adverts[client] = self.ask(client, Stage.ADVERTISE, encode_advertise(context, CONFIG))

    def share(self) -> None:
        body = b"".join(self.adverts[client] for client in self.members)
        for client in self.members:
            reply = self.ask(client, Stage.SHARE, body)
            if reply != REFUSAL:
                self.boxes[client] = decode_boxes(reply, [peer for peer in self.members if peer != client])

    def masked_body(self, receiver: bytes, summed: Iterable[bytes], model: bytes = MODEL) -> bytes:
        boxes = {sender: self.boxes[sender][receiver] for sender in summed if sender != receiver}
        return encode_bitmap(self.members, summed) + encode_entries(boxes) + model

    def mask(self, client: bytes, summed: Iterable[bytes], model: bytes = MODEL) -> bytes:
        return self.ask(client, Stage.MASK, self.masked_body(client, list(summed), model))

    def sign(self, client: bytes, survivors: Iterable[bytes]) -> bytes:
        return self.ask(client, Stage.CONSISTENCY, encode_bitmap(self.members, survivors))

    def unmask(
        self, client: bytes, signatures: Mapping[bytes, bytes], summed: Iterable[bytes]
    ) -> dict[bytes, int] | None:
        """The shares that `client` gives, {dealer: share}; None where it refuses."""
        reply = self.ask(client, Stage.UNMASK, encode_entries(signatures))
        if reply == REFUSAL:
            return None
        parts = [reply[start : start + 33] for start in range(0, len(reply), 33)]
        return {dealer: decode_share(part) for dealer, part in zip(sorted(summed), parts, strict=True)}

    def collect(self, clients: Iterable[bytes], survivors: Iterable[bytes], summed: Iterable[bytes]) -> Shares:
        """Stages 3 and 4 on one U3, with those `clients`: what they give away."""
        clients, survivors, summed = list(clients), list(survivors), list(summed)
        signatures = {client: self.sign(client, survivors) for client in clients}
        signatures = {client: signature for client, signature in signatures.items() if len(signature) == 64}
        given = {client: self.unmask(client, signatures, summed) for client in clients}
        return {client: shares for client, shares in given.items() if shares is not None}

    def secret(self, dealer: bytes, shares: Shares) -> bytes | None:
        """The secret behind the shares of one kind; None where there are too few."""
        points = {self.members.index(holder) + 1: values[dealer] for holder, values in shares.items()}
        needed = self.federation.fields.threshold
        return combine(dict(list(points.items())[:needed])) if len(points) >= needed else None

    def masking_hash(self, summed: Iterable[bytes], context: Context | None = None) -> bytes:
        context_hash = hash_context(context or self.federation.context())
        advertised = hash_advertised(context_hash, [self.adverts[client] for client in self.members])
        return hash_masking(advertised, encode_bitmap(self.members, summed))

    def mask_key(self, client: bytes) -> bytes:
        return Advert.from_bytes(self.adverts[client]).mask_key

    def unmasked_alone(
        self, victim: bytes, reply: bytes, summed: Iterable[bytes], *, self_mask: bytes, seeds: Mapping[bytes, bytes]
    ) -> Lanes:
        """One client's vector, (d,), from its reply, its b, and mask seeds: its own, or those of all its partners."""
        lanes, masking_hash = np.frombuffer(reply, "<u4").astype(np.uint32), self.masking_hash(summed)
        plus, minus = [self_seed(self_mask, masking_hash, victim)], []
        for peer in set(summed) - {victim}:
            ours = victim in seeds
            key = AgreementKey(seeds[victim if ours else peer])
            shared = key.exchange(self.mask_key(peer if ours else victim))
            low, high = [(client, self.mask_key(client)) for client in sorted((victim, peer))]
            (plus if peer > victim else minus).append(pair_seed(shared, masking_hash, low=low, high=high))
        add_keystreams(lanes, minus, plus)
        return lanes[:-CHECK_LANES]


def prepared(federation: Federation, *, until: Stage = Stage.CONSISTENCY) -> tuple[LyingServer, dict[bytes, bytes]]:
    """Honest play up to a stage; with the replies of stage 2 by client."""
    server = LyingServer(federation)
    server.advertise()
    if until > Stage.SHARE:
        server.share()
    masked = {}
    if until > Stage.MASK:
        masked = {client: server.mask(client, server.members) for client in server.members}
    return server, masked


def ids(*numbers: int) -> list[bytes]:
    return [client_id(number) for number in numbers]
