"""A client's five steps, pure: a state and a request in, the next state and a reply out (docs/protocol.md 4).

Advertised -> Shared -> Opened -> Masked -> Signed. Each state holds the secrets that later steps need and no others. A
step checks everything in its request before it answers, and raises ProtocolError else; `participant` sees to it that
none is taken twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from fedlearn.crypto.agreement import KEY_BYTES, AgreementKey, is_canonical, open_box, seal_box
from fedlearn.crypto.keystream import Entropy
from fedlearn.crypto.shamir import SHARE_BYTES, decode_share, draw_coefficients, split
from fedlearn.crypto.signatures import SigningKey, equal_in_constant_time, verify
from fedlearn.errors import ProtocolError
from fedlearn.privacy.quantization import Lanes
from fedlearn.secagg.masking import MaskedVector, add_keystreams, with_check_words
from fedlearn.secagg.messages import (
    Advert,
    MaskedRequest,
    decode_adverts,
    decode_bitmap,
    decode_boxes,
    decode_signatures,
    encode_entries,
    encode_shares,
)
from fedlearn.secagg.transcript import (
    Context,
    box_associated,
    box_key,
    commitment,
    hash_advertised,
    hash_context,
    hash_masking,
    pair_seed,
    self_seed,
)

__all__ = [
    "Advertised",
    "Masked",
    "Member",
    "Opened",
    "Shared",
    "Signed",
    "advertise",
    "check_distinct_keys",
    "mask",
    "open_boxes",
    "share",
    "sign_survivors",
    "unmask",
]

SELF_MASK_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Member:
    """One client of the roster: who it is, its key, and {client_id: Ed25519 public key} of all members."""

    client_id: bytes
    key: SigningKey
    roster: Mapping[bytes, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Advertised:
    """After stage 0: this attempt's fresh secrets, and what was said of them."""

    context: Context
    context_hash: bytes
    advert: Advert
    mask_seed: bytes = field(repr=False)
    channel_key: AgreementKey = field(repr=False)
    self_mask_seed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Shared:
    """After stage 1: U1 sorted, and what is shared with each other member of it. The mask seed itself is gone."""

    context: Context
    advertised_hash: bytes
    adverts: Mapping[bytes, Advert]
    own_shares: tuple[int, int] = field(repr=False)
    self_mask_seed: bytes = field(repr=False)
    mask_secrets: Mapping[bytes, bytes] = field(repr=False)
    channel_secrets: Mapping[bytes, bytes] = field(repr=False)

    @property
    def members(self) -> tuple[bytes, ...]:
        """U1, sorted."""
        return tuple(self.adverts)


@dataclass(frozen=True, slots=True)
class Opened:
    """A request for a masked vector that was found good: U2, and the seeds of this client's masks."""

    context: Context
    masking_hash: bytes
    members: tuple[bytes, ...]
    summed: tuple[bytes, ...]
    shares: Mapping[bytes, tuple[int, int]] = field(repr=False)
    plus: tuple[bytes, ...] = field(repr=False)
    minus: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Masked:
    """After stage 2: the shares of U2's secrets, {dealer: (share of mask seed, share of b)}. Own seeds are gone."""

    context: Context
    masking_hash: bytes
    members: tuple[bytes, ...]
    summed: tuple[bytes, ...]
    shares: Mapping[bytes, tuple[int, int]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Signed:
    """After stage 3: the one U3 that this client stands by."""

    masked: Masked
    bitmap: bytes
    survivors: tuple[bytes, ...]
    signature: bytes


def advertise(context: Context, member: Member, entropy: Entropy) -> tuple[Advertised, bytes]:
    """Stage 0: fresh mask seed, channel key and self-mask seed. The reply is the advert, 176 bytes.

    `context` was compared with what the client derives itself, by the caller.
    """
    context_hash = hash_context(context)
    mask_seed, channel_seed = entropy(KEY_BYTES), entropy(KEY_BYTES)
    self_mask_seed = entropy(SELF_MASK_BYTES)
    channel_key = AgreementKey(channel_seed)
    committed = commitment(context_hash, member.client_id, self_mask_seed)
    fields = (member.client_id, AgreementKey(mask_seed).public, channel_key.public, committed)
    advert = Advert.signed(member.key, context_hash, *fields)
    state = Advertised(context, context_hash, advert, mask_seed, channel_key, self_mask_seed)
    return state, advert.to_bytes()


def share(state: Advertised, body: bytes, member: Member, entropy: Entropy) -> tuple[Shared, bytes]:
    """Stage 1: agree with every other member of U1, and deal shares of both secrets in boxes. 98 bytes a peer.

    Raises:
        ProtocolError: an advert is not of the roster, not of this context, repeats a key, or is not canonical; this
            client's own is missing or altered; too few or too many; a key of small order.
    """
    adverts = _checked_adverts(state, body, member)
    peers = [client for client in adverts if client != member.client_id]
    mask_key = AgreementKey(state.mask_seed)
    # Both exchanges now: a mask key of small order must surface before any share is out.
    mask_secrets = {peer: mask_key.exchange(adverts[peer].mask_key) for peer in peers}
    channel_secrets = {peer: state.channel_key.exchange(adverts[peer].channel_key) for peer in peers}
    advertised_hash = hash_advertised(state.context_hash, (advert.to_bytes() for advert in adverts.values()))
    dealt = _dealt_shares(state, list(adverts), entropy)
    boxes = {}
    for peer in peers:
        key = _direction_key(channel_secrets[peer], advertised_hash, adverts[member.client_id], adverts[peer])
        boxes[peer] = seal_box(key, dealt[peer], box_associated(advertised_hash, member.client_id, peer))
    own = dealt[member.client_id]
    following = Shared(
        context=state.context,
        advertised_hash=advertised_hash,
        adverts=adverts,
        own_shares=_both_shares(own),
        self_mask_seed=state.self_mask_seed,
        mask_secrets=mask_secrets,
        channel_secrets=channel_secrets,
    )
    return following, encode_entries(boxes)


def open_boxes(state: Shared, request: MaskedRequest, member: Member) -> Opened:
    """Stage 2, before any work: is this a sum that this client may be part of? Then its masks are fixed.

    Raises:
        ProtocolError: another model than the context names, U2 below min_survivors or without this client, or boxes
            that are missing, too many, or do not open.
    """
    fields, own_id = state.context.fields, member.client_id
    if not equal_in_constant_time(request.model_hash, state.context.model_hash):
        raise ProtocolError("another model than the context names")
    summed = decode_bitmap(request.bitmap, state.members)
    if own_id not in summed or len(summed) < fields.min_survivors:
        raise ProtocolError(f"a sum of {len(summed)} without this client, or below min_survivors")
    peers = [client for client in summed if client != own_id]
    sealed, opened = decode_boxes(request.boxes, peers), {own_id: state.own_shares}
    for peer in peers:
        key = _direction_key(
            state.channel_secrets[peer], state.advertised_hash, state.adverts[peer], _own(state, member)
        )
        opened[peer] = _both_shares(open_box(key, sealed[peer], box_associated(state.advertised_hash, peer, own_id)))
    masking_hash = hash_masking(state.advertised_hash, request.bitmap)
    plus = [self_seed(state.self_mask_seed, masking_hash, own_id)]
    plus += [_pair_seed(state, member, peer, masking_hash) for peer in peers if peer > own_id]
    minus = [_pair_seed(state, member, peer, masking_hash) for peer in peers if peer < own_id]
    shares = {client: opened[client] for client in summed}
    return Opened(state.context, masking_hash, state.members, summed, shares, tuple(plus), tuple(minus))


def mask(state: Opened, lanes: Lanes, *, threads: int = 1) -> tuple[Masked, MaskedVector]:
    """Stage 2: y = x with its check words + the masks. `lanes` is (d,); the result (d + 3,), uniform to the server."""
    if not (lanes.shape == (state.context.fields.dimension,)):
        raise AssertionError("one lane an entry")
    masked = with_check_words(lanes, state.masking_hash)
    add_keystreams(masked, state.plus, state.minus, threads=threads)
    following = Masked(state.context, state.masking_hash, state.members, state.summed, state.shares)
    return following, MaskedVector(masked)


def sign_survivors(state: Masked, body: bytes, member: Member) -> tuple[Signed, bytes]:
    """Stage 3: stand by one U3. The reply is the signature, 64 bytes.

    Raises:
        ProtocolError: U3 is not within U2, lacks this client, or is below min_survivors.
    """
    survivors = decode_bitmap(body, state.members)
    if member.client_id not in survivors or not set(survivors) <= set(state.summed):
        raise ProtocolError("survivors that are not in the sum, or this client is not among them")
    if len(survivors) < state.context.fields.min_survivors:
        raise ProtocolError(f"{len(survivors)} survivors, below min_survivors")
    signature = member.key.sign("u3", state.masking_hash + body)
    return Signed(state, body, survivors, signature), signature


def unmask(state: Signed, body: bytes, member: Member) -> bytes:
    """Stage 4: for each member of U2 one share, of b where it survived and of the mask seed where not; never both.

    Raises:
        ProtocolError: fewer than `threshold` survivors stand by this client's own U3.
    """
    signatures = decode_signatures(body, len(state.masked.members))
    if not _enough_stand_by(state, signatures, member):
        raise ProtocolError("too few signatures on the survivors that this client signed")
    survivors = set(state.survivors)
    return encode_shares(
        self_mask_share if client in survivors else mask_share
        for client, (mask_share, self_mask_share) in state.masked.shares.items()
    )


def check_distinct_keys(adverts: Sequence[Advert]) -> None:
    """Whether all keys and commitments of one attempt are canonical and differ from each other.

    Raises:
        ProtocolError: one does not: a repeated key is a client that was invented or copied.
    """
    values = [(advert.mask_key, advert.channel_key, advert.commitment) for advert in adverts]
    if len(set(chain.from_iterable(values))) != 3 * len(values):
        raise ProtocolError("a key or a commitment twice")
    if not all(is_canonical(mask_key) and is_canonical(channel_key) for mask_key, channel_key, _ in values):
        raise ProtocolError("a public key that is not canonical")


def _checked_adverts(state: Advertised, body: bytes, member: Member) -> dict[bytes, Advert]:
    fields = state.context.fields
    adverts = {advert.client_id: advert for advert in decode_adverts(body, fields.planned_cohort)}
    if len(adverts) < fields.min_survivors:
        raise ProtocolError(f"{len(adverts)} adverts, below min_survivors")
    if adverts.get(member.client_id) != state.advert:
        raise ProtocolError("this client's own advert is missing or altered")
    check_distinct_keys(list(adverts.values()))
    for client, advert in adverts.items():
        public = member.roster.get(client)
        if public is None or (advert != state.advert and not advert.is_valid(public, state.context_hash)):
            raise ProtocolError("an advert that no member of the roster signed for this context")
    return adverts


def _dealt_shares(state: Advertised, members: Sequence[bytes], entropy: Entropy) -> dict[bytes, bytes]:
    """{member: share of the mask seed | share of b}, this client's own included."""
    degree, holders = state.context.fields.threshold - 1, len(members)
    of_mask_seed = split(state.mask_seed, coefficients=draw_coefficients(degree, entropy), holders=holders)
    of_self_mask = split(state.self_mask_seed, coefficients=draw_coefficients(degree, entropy), holders=holders)
    return {client: of_mask_seed[rank] + of_self_mask[rank] for rank, client in enumerate(members)}


def _both_shares(message: bytes) -> tuple[int, int]:
    return decode_share(message[:SHARE_BYTES]), decode_share(message[SHARE_BYTES:])


def _own(state: Shared, member: Member) -> Advert:
    return state.adverts[member.client_id]


def _direction_key(shared: bytes, advertised_hash: bytes, sender: Advert, receiver: Advert) -> bytes:
    keys = sender.channel_key + receiver.channel_key
    return box_key(shared, advertised_hash, sender=sender.client_id, receiver=receiver.client_id, keys=keys)


def _pair_seed(state: Shared, member: Member, peer: bytes, masking_hash: bytes) -> bytes:
    pair = [(client, state.adverts[client].mask_key) for client in sorted((member.client_id, peer))]
    return pair_seed(state.mask_secrets[peer], masking_hash, low=pair[0], high=pair[1])


def _enough_stand_by(state: Signed, signatures: Mapping[bytes, bytes], member: Member) -> bool:
    """Whether `threshold` survivors signed this very U3; the verification stops there."""
    message = state.masked.masking_hash + state.bitmap
    missing = state.masked.context.fields.threshold
    for client in state.survivors:
        signature = signatures.get(client, b"")
        own = equal_in_constant_time(signature, state.signature)
        missing -= own or verify(member.roster[client], signature, purpose="u3", message=message)
        if missing == 0:
            return True
    return False
