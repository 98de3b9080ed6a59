"""What travels between coordinator and agent: a small canonical header and a body, the same bytes on every engine.

u32 length of header | header: canonical JSON {attempt, round, session, stage, version} | u64 length of body | body
"""

from dataclasses import dataclass
from typing import Final

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json
from fedlearn.crypto.labels import REFUSAL
from fedlearn.errors import ConfigError, ProtocolError
from fedlearn.stages import STAGES

__all__ = ["MAX_FRAME_BYTES", "REFUSAL", "Frame"]

MAX_FRAME_BYTES: Final = 1 << 30

_MAX_HEADER: Final = 512
_COUNTERS: Final = (1 << 32, 1 << 16)  # round and attempt are below: u32 and u16 of the context


@dataclass(frozen=True, slots=True)
class Frame:
    """One request. `session` is 32 lower-case hex digits; (round, attempt) only grows within it."""

    stage: str
    session: str
    round: int
    attempt: int
    body: bytes = b""

    def to_bytes(self) -> bytes:
        """The frame's canonical bytes."""
        header = self._header()
        return len(header).to_bytes(4, "big") + header + len(self.body).to_bytes(8, "big") + self.body

    def _header(self) -> bytes:
        fields = {
            "attempt": self.attempt,
            "round": self.round,
            "session": self.session,
            "stage": self.stage,
            "version": 1,
        }
        return canonical_json(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Frame":
        """The frame in `data`.

        Raises:
            ProtocolError: not exactly one canonical frame.
        """
        header_end = 4 + int.from_bytes(data[:4], "big")
        body_start = header_end + 8
        if not 4 < header_end <= 4 + _MAX_HEADER or len(data) < body_start or len(data) > MAX_FRAME_BYTES:
            raise ProtocolError("frame of an impossible size")
        if len(data) != body_start + int.from_bytes(data[header_end:body_start], "big"):
            raise ProtocolError("frame whose body has another length than it says")
        frame = cls._from_header(data[4:header_end], data[body_start:])
        if frame._header() != data[4:header_end]:
            raise ProtocolError("frame whose header is not canonical")
        return frame

    @classmethod
    def of_stage(cls, stage: str, data: bytes) -> "Frame":
        """The frame in `data`, which came in a message of `stage`.

        Raises:
            ProtocolError: not exactly one canonical frame, or one of another stage.
        """
        frame = cls.from_bytes(data)
        if frame.stage != stage:
            raise ProtocolError(f"a frame of stage {frame.stage} in a message of stage {stage}")
        return frame

    @classmethod
    def _from_header(cls, header: bytes, body: bytes) -> "Frame":
        try:
            fields = read_json(header, what="the header")
            stage, session, version = fields["stage"], fields["session"], fields["version"]
            counters = (fields["round"], fields["attempt"])
        except (ConfigError, KeyError, TypeError):
            raise ProtocolError("frame whose header cannot be read") from None
        valid_session = isinstance(session, str) and len(session) == 32 and set(session) <= set("0123456789abcdef")
        valid_counters = all(type(n) is int and 0 <= n < most for n, most in zip(counters, _COUNTERS, strict=True))
        if version != 1 or stage not in STAGES or not valid_session or not valid_counters:
            raise ProtocolError("frame whose header has a field out of range")
        return cls(stage, session, counters[0], counters[1], body)
