"""The server's half of a round, read top to bottom: lanes of the survivors -> noised sum -> mean update."""

from collections.abc import Iterable

import numpy as np

from fedlearn.crypto.keystream import Entropy
from fedlearn.errors import RunFailedError
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import Mechanism
from fedlearn.privacy.quantization import Lanes, from_lanes, to_lanes

__all__ = ["finish_round", "noised_sum", "refuse_unless_finite"]


def noised_sum(contributions: Iterable[Lanes], *, mechanism: Mechanism, plan: Plan, entropy: Entropy) -> Lanes:
    """The sum, with the noise of the server's where the mode has it.

    `contributions` are (d,) lanes, one a survivor; an empty iterable is the sum of nobody. The result is (d,) lanes.
    """
    total = np.zeros(plan.dimension, dtype=np.uint32)
    for lanes in contributions:
        total += lanes
    # Added modulo 2^32 too: where a sum wraps around, the noise still covers what one client moved.
    return total + to_lanes(mechanism.noise.central(plan, entropy))


def finish_round(noised: Lanes, *, mechanism: Mechanism, plan: Plan, learning_rate: float) -> Vector:
    """The update by which the model moves: decode the noised sum, divide. (d,) lanes -> (d,) float64.

    The divisor is a public constant, never a count (docs/specification/privacy.md 3.4).
    """
    factor = mechanism.work.server_factor(learning_rate)
    return from_lanes(noised).astype(np.float64) * (factor / float(plan.divisor * 2**plan.scale_bits))


def refuse_unless_finite(weights: Vector, number: int) -> None:
    """Raise RunFailedError for weights (d,) that are not finite as float32, in which a model is sent and stored."""
    with np.errstate(over="ignore"):
        finite = bool(np.isfinite(weights.astype(np.float32)).all())
    if not finite:
        raise RunFailedError(
            f"round {number}: the model is not finite any more, so there is nothing to go on with; "
            "lower training.learning_rate or the strategy's options, and begin a new run"
        )
