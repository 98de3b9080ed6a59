"""What the parties of one attempt agree on: the context, and the hashes that key the masks and are signed.

c0 stands for the context, c1 for context and adverts, c2 for these and the clients whose masks are in the sum. Two
clients that saw different things have different hashes, and then neither signatures nor boxes nor masks fit.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from typing import Final

from fedlearn.crypto.agreement import derive_key
from fedlearn.crypto.keystream import SEED_BYTES, STREAM_BYTES
from fedlearn.crypto.labels import label
from fedlearn.errors import ProtocolError
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.request import threshold_of

__all__ = [
    "CHECK_LANES",
    "CONTEXT_BYTES",
    "ID_BYTES",
    "LANE_BYTES",
    "MAX_COHORT",
    "Context",
    "ContextFields",
    "Position",
    "box_associated",
    "box_key",
    "check_seeds",
    "commitment",
    "hash_advertised",
    "hash_context",
    "hash_masking",
    "pair_seed",
    "self_seed",
]

ID_BYTES: Final = 16
MAX_COHORT: Final = 256
CONTEXT_BYTES: Final = 209
CHECK_LANES: Final = 3
LANE_BYTES: Final = 4

_SUITE: Final = 1
_LANE_BITS: Final = 32
_FIELDS: Final = struct.Struct(">H 16s I H 32s 32s 32s 32s B H H H H Q B B Q Q I I I 5H")
_SHARED_NOISE_MODES: Final = {mechanism.code for mechanism in MECHANISMS.values() if mechanism.noise.in_shares}
_MODES: Final = {mechanism.code for mechanism in MECHANISMS.values()}


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Which attempt: session (16 bytes, kept across resumes), round (u32), attempt (u16)."""

    session: bytes
    round: int
    attempt: int

    def __post_init__(self) -> None:
        if len(self.session) != 16 or not 0 <= self.round < 1 << 32 or not 0 <= self.attempt < 1 << 16:
            raise ProtocolError("a session, round or attempt out of range")

    def to_bytes(self) -> bytes:
        """22 bytes: session | round | attempt."""
        return self.session + self.round.to_bytes(4, "big") + self.attempt.to_bytes(2, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFields:
    """Every field of the context that a client derives itself, from RunConfig, plan and its policy's roster.

    Hashes have 32 bytes; `sensitivity`, `clip_bound` and `noise_std` are integers in grid units.
    """

    config_hash: bytes
    roster_hash: bytes
    layout_hash: bytes
    privacy_mode: int
    planned_cohort: int
    threshold: int
    min_survivors: int
    max_colluders: int
    dimension: int
    scale_bits: int
    sensitivity: int
    clip_bound: int
    noise_std: int
    sampling_numerator: int
    sampling_denominator: int
    stage_seconds: tuple[int, int, int, int, int]

    @property
    def lanes(self) -> int:
        """Lanes of a masked vector: one an entry, and the check words."""
        return self.dimension + CHECK_LANES

    def check(self) -> None:
        """See that docs/specification/secure-aggregation.md 5.2 and 8 hold for these numbers.

        Raises:
            ProtocolError: one of them does not.
        """
        self._check_thresholds()
        if self.privacy_mode not in _MODES or self.sensitivity < 1 or min(self.stage_seconds) < 1:
            raise ProtocolError("terms with an unknown privacy mode, no sensitivity, or no time for a stage")
        shared = self.privacy_mode in _SHARED_NOISE_MODES
        if shared != (64 <= self.noise_std < 1 << 26) or (not shared and self.noise_std) or self.max_colluders < shared:
            raise ProtocolError("terms whose noise share does not fit their privacy mode")
        if self.planned_cohort * (self.clip_bound + 12 * self.noise_std) >= 1 << 31:
            raise ProtocolError("terms under which a sum would overflow its lanes")
        numerator, denominator = self.sampling_numerator, self.sampling_denominator
        if not 1 <= numerator <= denominator or gcd(numerator, denominator) != 1:
            raise ProtocolError("a sampling probability above 1, zero, or not in lowest terms")
        if self.lanes * LANE_BYTES > STREAM_BYTES:
            raise ProtocolError("a vector longer than one keystream")

    def _check_thresholds(self) -> None:
        asked, threshold, survivors = self.planned_cohort, self.threshold, self.min_survivors
        if not 3 <= asked <= MAX_COHORT:
            raise ProtocolError(
                f"a cohort of {asked}; expected 3 to {MAX_COHORT}: each client masks against every other, so that the "
                "cost grows with the square, and share numbers have 8 bits"
            )
        if threshold != threshold_of(asked) or not threshold <= survivors <= asked:
            raise ProtocolError("a threshold other than floor(2P/3) + 1, or min_survivors outside of [threshold, P]")
        if not 0 <= self.max_colluders <= min(2 * threshold - asked - 1, survivors - 2):
            raise ProtocolError("more colluders than two sets of survivors can bear: K <= min(2t - P - 1, M - 2)")


@dataclass(frozen=True, slots=True)
class Context:
    """ctx: all that an attempt's masks depend on from its first message on. 209 bytes, integers and hashes only."""

    position: Position
    model_hash: bytes
    fields: ContextFields

    def to_bytes(self) -> bytes:
        """The canonical bytes."""
        position, fields = self.position, self.fields
        return _FIELDS.pack(
            _SUITE,
            position.session,
            position.round,
            position.attempt,
            fields.config_hash,
            fields.roster_hash,
            self.model_hash,
            fields.layout_hash,
            fields.privacy_mode,
            fields.planned_cohort,
            fields.threshold,
            fields.min_survivors,
            fields.max_colluders,
            fields.dimension,
            fields.scale_bits,
            _LANE_BITS,
            fields.sensitivity,
            fields.clip_bound,
            fields.noise_std,
            fields.sampling_numerator,
            fields.sampling_denominator,
            *fields.stage_seconds,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Context":
        """The context in exactly 209 bytes; its numbers are not yet checked (`ContextFields.check`).

        Raises:
            ProtocolError: another length, suite or lane width.
        """
        if len(data) != CONTEXT_BYTES:
            raise ProtocolError(f"a context of {len(data)} bytes; expected {CONTEXT_BYTES}")
        suite, session, round_number, attempt, config, roster, model, layout, *numbers = _FIELDS.unpack(data)
        mode, asked, threshold, survivors, colluders, dimension, scale_bits, lane_bits, *rest = numbers
        if suite != _SUITE or lane_bits != _LANE_BITS:
            raise ProtocolError(f"suite {suite} with {lane_bits}-bit lanes; expected suite 1 with 32")
        sensitivity, clip_bound, noise_std, numerator, denominator, *seconds = rest
        fields = ContextFields(
            config_hash=config,
            roster_hash=roster,
            layout_hash=layout,
            privacy_mode=mode,
            planned_cohort=asked,
            threshold=threshold,
            min_survivors=survivors,
            max_colluders=colluders,
            dimension=dimension,
            scale_bits=scale_bits,
            sensitivity=sensitivity,
            clip_bound=clip_bound,
            noise_std=noise_std,
            sampling_numerator=numerator,
            sampling_denominator=denominator,
            stage_seconds=(seconds[0], seconds[1], seconds[2], seconds[3], seconds[4]),
        )
        return cls(Position(session, round_number, attempt), model, fields)


def hash_context(context: Context) -> bytes:
    """c0 = SHA256(L("ctx") | ctx)."""
    return hashlib.sha256(label("ctx") + context.to_bytes()).digest()


def hash_advertised(context_hash: bytes, adverts: Iterable[bytes]) -> bytes:
    """c1 = SHA256(L("u1") | c0 | SHA256(advert_1) | ...), adverts in order of client_id."""
    digests = b"".join(hashlib.sha256(advert).digest() for advert in adverts)
    return hashlib.sha256(label("u1") + context_hash + digests).digest()


def hash_masking(advertised_hash: bytes, bitmap: bytes) -> bytes:
    """c2 = SHA256(L("u2") | c1 | bitmap of U2 over U1)."""
    return hashlib.sha256(label("u2") + advertised_hash + bitmap).digest()


def commitment(context_hash: bytes, client_id: bytes, self_mask_seed: bytes) -> bytes:
    """com = SHA256(L("b") | c0 | id | b)."""
    return hashlib.sha256(label("b") + context_hash + client_id + self_mask_seed).digest()


def box_associated(advertised_hash: bytes, sender: bytes, receiver: bytes) -> bytes:
    """What a box is bound to: c1 | from | to."""
    return advertised_hash + sender + receiver


def box_key(shared: bytes, advertised_hash: bytes, *, sender: bytes, receiver: bytes, keys: bytes) -> bytes:
    """The 32-byte key of the one box from `sender` to `receiver`; `keys` = CK_from | CK_to."""
    context = sender + receiver + keys
    return derive_key(shared, salt=advertised_hash, purpose="box", context=context, size=32)


def pair_seed(shared: bytes, masking_hash: bytes, *, low: tuple[bytes, bytes], high: tuple[bytes, bytes]) -> bytes:
    """The 40-byte seed of the mask of two clients, each given as (id, MK), in order of client_id."""
    context = low[0] + high[0] + low[1] + high[1]
    return derive_key(shared, salt=masking_hash, purpose="pair", context=context, size=SEED_BYTES)


def self_seed(self_mask_seed: bytes, masking_hash: bytes, client_id: bytes) -> bytes:
    """The 40-byte seed of a client's own mask."""
    return derive_key(self_mask_seed, salt=masking_hash, purpose="self", context=client_id, size=SEED_BYTES)


def check_seeds(masking_hash: bytes) -> tuple[bytes, bytes]:
    """The two public keystream seeds of the check words: key SHA256(L("check") | c2), salts u64 0 and 1."""
    key = hashlib.sha256(label("check") + masking_hash).digest()
    return key + (0).to_bytes(8, "big"), key + (1).to_bytes(8, "big")
