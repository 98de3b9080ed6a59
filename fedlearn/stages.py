"""The stages of a round by the names that frames and messages carry; they are written down nowhere else."""

from typing import Final

__all__ = ["ADVERTISE", "ATTEST", "CONSISTENCY", "IDENTIFY", "MASKED", "SHARE", "STAGES", "STAGES_OF_ATTEMPT", "UNMASK"]

IDENTIFY: Final = "identify"  # before the first attempt: who a node is
ADVERTISE: Final = "advertise"
SHARE: Final = "share"
MASKED: Final = "masked"  # the one in which a vector leaves
CONSISTENCY: Final = "consistency"
UNMASK: Final = "unmask"
ATTEST: Final = "attest"  # after the last round: what a holder booked

STAGES_OF_ATTEMPT: Final = (ADVERTISE, SHARE, MASKED, CONSISTENCY, UNMASK)  # in the order of `secagg.messages.Stage`
STAGES: Final = (IDENTIFY, *STAGES_OF_ATTEMPT, ATTEST)
