"""The client's half of a round, read top to bottom: records -> noised integers modulo 2^32."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedlearn.crypto.keystream import Entropy
from fedlearn.data.dataset import Dataset
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import Mechanism
from fedlearn.privacy.quantization import Lanes, to_lanes

__all__ = ["Contributor", "LocalWork", "contribute"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contributor:
    """One client in one attempt. `batch_seed` orders the batches of modes whose unit is not the record."""

    records: Callable[[], Dataset] = field(repr=False)
    batch_seed: tuple[int, ...]


LocalWork = Callable[[Vector, Contributor], Vector]


def contribute(
    weights: Vector,
    clients: Sequence[Contributor],
    *,
    work: LocalWork,
    mechanism: Mechanism,
    plan: Plan,
    entropy: Entropy,
) -> Lanes:
    """What each client sends, before masking: local work, clip, truncate, noise share, reduce modulo 2^32.

    Called after the release is reserved in the ledger. `weights` is (d,); the result is (n, d), one row a client.

    Guarantees:
        a row depends on its client's records only through a vector clipped to the plan's bounds, plus fresh noise;
        whatever the local work raises, the row is zeros plus noise: a refusal here would show something.
    """
    lanes = np.empty((len(clients), len(weights)), dtype=np.uint32)
    for row, client in enumerate(clients):
        grid = mechanism.to_grid(_work_or_zeros(work, weights, client)[np.newaxis], plan)
        grid += mechanism.noise_share(plan, grid.shape, entropy)
        lanes[row] = to_lanes(grid)[0]
    return lanes


def _work_or_zeros(work: LocalWork, weights: Vector, client: Contributor) -> Vector:
    try:
        return work(weights, client)
    except Exception:  # the one place where everything is caught: privacy.md 1.4, step 6
        _log.exception("local work failed; zeros and noise are sent")
        return np.zeros_like(weights)
