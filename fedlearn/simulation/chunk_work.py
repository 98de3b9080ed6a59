"""What computing a chunk takes, wherever it is computed: the data, what the run's configuration means, and a stream."""

from dataclasses import dataclass, field

from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import IntVector
from fedlearn.round.agreement import Agreement
from fedlearn.round.contribution import clean_sum
from fedlearn.simulation.simulated import Holdings
from fedlearn.simulation.worker_pool import Chunk, SeededEntropy

__all__ = ["ChunkWork"]


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """Computes chunks of one run. `coins` is the entropy that the agreement's local work draws from."""

    agreement: Agreement
    holdings: Holdings = field(repr=False)
    coins: SeededEntropy = field(repr=False)

    def __call__(self, weights: Vector, chunk: Chunk) -> IntVector:
        """As `worker_pool.SumOfChunk`; the same chunk gives the same integers, on one type of CPU."""
        self.coins.begin(chunk.seed)
        agreement = self.agreement
        return clean_sum(
            weights,
            agreement.contributors(self.holdings.records, chunk.round_number, clients=chunk.members),
            work=agreement.work,
            stacked=agreement.stacked,
            mechanism=agreement.mechanism,
            plan=agreement.plan,
        )
