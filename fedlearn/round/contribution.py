"""The client's half of a round, read top to bottom: records -> noised integers modulo 2^32."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedlearn.crypto.keystream import Entropy
from fedlearn.data.dataset import Dataset
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import Mechanism
from fedlearn.privacy.quantization import IntVector, Lanes, to_lanes

__all__ = ["Contributor", "LocalWork", "StackedWork", "clean_sum", "contribute"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contributor:
    """One client in one attempt. `batch_seed` orders the batches of modes whose unit is not the record."""

    records: Callable[[], Dataset] = field(repr=False)
    batch_seed: tuple[int, ...]


# One client's vector (d,), and those of many clients in their order, in blocks of rows (m, d).
LocalWork = Callable[[Vector, Contributor], Vector]
StackedWork = Callable[[Vector, Sequence[Contributor]], Iterator[Vector]]


def contribute(
    weights: Vector,
    clients: Sequence[Contributor],
    *,
    work: LocalWork,
    stacked: StackedWork | None = None,
    mechanism: Mechanism,
    plan: Plan,
    entropy: Entropy,
) -> Lanes:
    """What each client sends, before masking: local work, clip, truncate, noise share, reduce modulo 2^32.

    Called after the release is reserved in the ledger. `weights` is (d,); the result is (n, d), one row a client.
    `stacked` is the same work for many clients at once, where there is a way; `work` then does what it fails at.

    Guarantees:
        a row depends on its client's records only through a vector clipped to the plan's bounds, plus fresh noise;
        whatever the local work raises, the row is zeros plus noise: a refusal here would show something.
    """
    lanes = np.empty((len(clients), len(weights)), dtype=np.uint32)
    done = 0
    for block in _blocks(weights, clients, work, stacked):
        grid = mechanism.work.to_grid(block, plan)
        rows = len(block)
        del block  # a large model's vector goes before its noise comes
        grid += mechanism.noise.share(plan, grid.shape, entropy)
        lanes[done : done + rows] = to_lanes(grid)
        done += rows
    return lanes


def clean_sum(
    weights: Vector,
    clients: Sequence[Contributor],
    *,
    work: LocalWork,
    stacked: StackedWork | None = None,
    mechanism: Mechanism,
    plan: Plan,
) -> IntVector:
    """What the rows of `contribute` sum up to without the shares of noise, (d,) int64; no row is kept.

    For a simulation whose vectors are summed where they are made: nothing of it may leave before the noise of the sum
    is added (`NoiseSource.of_sum`).
    """
    total = np.zeros(len(weights), dtype=np.int64)
    for block in _blocks(weights, clients, work, stacked):
        total += mechanism.work.to_grid(block, plan).sum(axis=0)
    return total


def _blocks(
    weights: Vector, clients: Sequence[Contributor], work: LocalWork, stacked: StackedWork | None
) -> Iterator[Vector]:
    """The clients' vectors in their order; from the first block that fails on, each by itself."""
    done = 0
    if stacked is not None:
        try:
            for block in stacked(weights, clients):
                done += len(block)
                yield block
                del block
        except Exception:
            _log.exception("local work of many clients at once failed; each is done by itself")
    for client in clients[done:]:
        yield _work_or_zeros(work, weights, client)[np.newaxis]


def _work_or_zeros(work: LocalWork, weights: Vector, client: Contributor) -> Vector:
    try:
        return work(weights, client)
    except Exception:  # the one place where everything is caught: docs/specification/privacy.md 3.5
        _log.exception("local work failed; zeros and noise are sent")
        return np.zeros_like(weights)
