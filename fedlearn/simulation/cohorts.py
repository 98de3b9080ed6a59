"""The data holders of a simulation whose vectors are summed where they are made: masking is off, and nobody looks.

A cohort is one piece of work: one row in the ledger reserves the release of all its members, their vectors are computed
block by block and added up, one draw stands for their shares of noise, and one row releases. No client has a state of
its own, so that a million cost nothing until they are asked.
"""

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from fedlearn.coordinator.attempts import AttemptFailedError, Summed
from fedlearn.coordinator.pooled_data import SimulatedData
from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.errors import FedlearnError, ProtocolError, RunFailedError
from fedlearn.ledger import Ledger, Reservation
from fedlearn.model.layout import read_model
from fedlearn.privacy.quantization import IntVector, to_lanes
from fedlearn.round.agreement import Agreement
from fedlearn.round.tally import Tally
from fedlearn.simulation.chunk_work import ChunkWork
from fedlearn.simulation.processes import SummingProcesses, worker_count
from fedlearn.simulation.ray_tasks import RayTasks
from fedlearn.simulation.simulated import Holdings, holder_context_of
from fedlearn.simulation.worker_pool import OneProcess, SeededEntropy, WorkerPool, chunks_of

__all__ = ["CLIENTS", "Position", "SimulatedCohorts"]

CLIENTS: Final = "clients"  # the common account of all clients

Position = tuple[str, int, int]  # session, round, attempt

_log = logging.getLogger(__name__)


class SimulatedCohorts:
    """All holders of an unmasked simulation; their work is done here, by processes beside, or on a Ray cluster.

    Guarantees:
        the releases of a cohort are reserved in the ledger before a record of it is read, and released before the sum
        leaves; a client's participations are counted, and bounded, one by one;
        nothing leaves but the noised sum, and its noise is drawn once.
    """

    def __init__(self, data: SimulatedData, folder: Path, *, entropy: Entropy | None = None) -> None:
        """`entropy`, for noise and coins, is the operating system's unless a test brings its own."""
        self._entropy, self._coins = entropy or stream_entropy(os.urandom), SeededEntropy()
        self._tally, self._folder = Tally(), folder
        self._context = holder_context_of(data, folder, entropy=self._coins, on_failure=self._tally.add)
        self._workers = worker_count(data.config.runtime.workers, self._context.device)
        self._data, self._holdings = data, Holdings(data)
        self._pool: WorkerPool | None = None
        self._position: Position = ("", -1, -1)
        self._agreement: Agreement | None = None
        self._context.open_account(CLIENTS, order=data.plan.ledger_order)

    @property
    def ledger(self) -> Ledger:
        """The one ledger of all holders."""
        return self._context.ledger

    def close(self) -> None:
        """Let the workers go, and close the ledger."""
        if self._pool is not None:
            self._pool.close()
        self._context.close()

    def agree(self, position: Position, cohort: Sequence[int], config: bytes) -> Sequence[int]:
        """Who of the cohort accepts the run: all, or for a reason that stands in the log, nobody."""
        try:
            if self._position[0] == position[0] and position <= self._position:
                raise ProtocolError(f"attempt {position[1:]} after {self._position[1:]}")
            self._agreement = self._context.agreement(config)
        except FedlearnError as error:
            _log.info("the clients refuse: %s", error)
            return ()
        self._position = position
        return cohort

    def total(self, position: Position, members: Sequence[int], model: bytes, lost: Collection[int] = ()) -> Summed:
        """The noised sum of what `members` send, increasing; what `lost` ones send is booked and gets lost.

        Raises:
            AttemptFailedError: the ledger refuses one of them, or the model is not one; the reason stands in the log.
            RunFailedError: nobody is left who computes.
        """
        agreement = self._agreement
        assert agreement is not None
        if position != self._position:
            raise AssertionError("`agree` comes first")
        arrived = [member for member in members if member not in lost]
        try:
            reserved = self._reserve(agreement, position, members)
            total = self._noised_sum(agreement, arrived, model, round_number=position[1])
            self.ledger.release(reserved)
        except RunFailedError:
            raise
        except FedlearnError as error:
            _log.info("the clients refuse: %s", error)
            raise AttemptFailedError(f"the clients refuse: {error}") from None
        return Summed(to_lanes(total), len(arrived), transcript=None)

    def _reserve(self, agreement: Agreement, position: Position, members: Sequence[int]) -> list[int]:
        event = agreement.plan.ledger_event
        if event is None or not members:
            return []
        session, round_number, attempt = position
        entry = Reservation(
            dataset_id=CLIENTS,
            session=session,
            round=round_number,
            attempt=attempt,
            event=event.to_bytes(),
            max_releases=agreement.plan.releases,
            members=tuple(members),
        )
        return self.ledger.reserve([entry])

    def _noised_sum(
        self, agreement: Agreement, members: Sequence[int], model: bytes, *, round_number: int
    ) -> IntVector:
        """Chunks come with the seeds of their coins; the noise of the sum is drawn here, once, when all are there."""
        chunks = chunks_of(members, round_number, block=agreement.block, entropy=self._entropy)
        total = self._working(agreement).clean_sum(read_model(model, agreement.layout), list(chunks))
        self._tally.note(self._folder, round_number=round_number, clients=len(members))
        total += agreement.mechanism.noise.of_sum(agreement.plan, len(members), self._entropy)
        return total

    def _working(self, agreement: Agreement) -> WorkerPool:
        """The pool, hired at the first sum: processes are forked when all that they need is in memory."""
        if self._pool is None:
            address = self._data.config.runtime.ray_address
            work = ChunkWork(agreement, self._holdings, self._coins)
            if address is not None:
                self._pool = RayTasks(address, self._data, self._tally)
            elif self._workers > 1:
                self._pool = SummingProcesses.of(self._workers, agreement.plan.dimension, work)
            else:
                self._pool = OneProcess(work)
        return self._pool
