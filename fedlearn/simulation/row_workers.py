"""Processes that compute the noised vectors of a masked simulation's clients; what follows, masks and keys, stays here.

Records, coins, work and each client's own share of noise are a worker's; a chunk brings the seed of all of it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fedlearn.crypto.keystream import Entropy
from fedlearn.data.dataset import Dataset
from fedlearn.holder.pending_replies import contributed
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import Lanes
from fedlearn.round.agreement import Agreement
from fedlearn.round.contribution import Contributor
from fedlearn.simulation.processes import Processes
from fedlearn.simulation.worker_pool import Chunk, SeededEntropy, chunks_of

__all__ = ["RowWorkers"]

_FEWEST_ROWS = 4  # chunks of at most 64 of a cohort of 256


class RowWorkers:
    """`count` processes, forked at the first vectors. `records` gives what client number k holds.

    `coins` is the entropy that agreements draw from; seeds come from `entropy`.
    """

    def __init__(
        self, count: int, records: Callable[[int], Dataset], *, coins: SeededEntropy, entropy: Entropy
    ) -> None:
        self._count, self._records = count, records
        self._coins, self._entropy = coins, entropy
        self._processes: Processes | None = None

    def contributed(
        self, agreement: Agreement, weights: Vector, clients: Sequence[Contributor], entropy: Entropy
    ) -> Lanes:
        """As `turns.contributed`, whose entropy is not used: each chunk has a seed of its own."""
        del entropy
        numbers = [client.batch_seed[-1] for client in clients]
        _, round_number, _ = clients[0].batch_seed
        lanes = np.empty((len(clients), len(weights)), dtype=np.uint32)
        place = {number: row for row, number in enumerate(numbers)}
        chunks = list(chunks_of(numbers, round_number, block=agreement.block, entropy=self._entropy))
        for chunk, rows in self._working(agreement).each(weights, chunks):
            lanes[[place[number] for number in chunk.members]] = rows[: len(chunk.members)]
        return lanes

    def close(self) -> None:
        """Let the processes go."""
        if self._processes is not None:
            self._processes.close()

    def _working(self, agreement: Agreement) -> Processes:
        if self._processes is None:
            dimension = agreement.plan.dimension
            most = max(_FEWEST_ROWS, agreement.block)
            by_chunk = partial(self._rows_of_chunk, agreement)
            self._processes = Processes(self._count, dimension, by_chunk, ((most, dimension), np.uint32))
        return self._processes

    def _rows_of_chunk(self, agreement: Agreement, weights: Vector, chunk: Chunk) -> Lanes:
        self._coins.begin(chunk.seed)
        clients = agreement.contributors(self._records, chunk.round_number, clients=chunk.members)
        return contributed(agreement, weights, clients, self._coins)
