"""The in-process engine: the same two apps as in a deployment, over a grid that lives in one process."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass

from fedlearn.coordinator.attempts import Summed
from fedlearn.coordinator.pooled_data import SimulatedData
from fedlearn.coordinator.run_data import OnRound
from fedlearn.flower.drop_outs import DropOuts
from fedlearn.flower.in_process_apps import grid_of_clients, grid_of_sums, run_apps
from fedlearn.flower.in_process_grid import InProcessGrid
from fedlearn.run.checkpoint import Progress, RunFolder
from fedlearn.simulation.cohorts import Position, SimulatedCohorts
from fedlearn.simulation.simulated import AgentPool
from fedlearn.stages import ADVERTISE, MASKED

__all__ = ["grid_of", "run_in_process"]


def run_in_process(folder: RunFolder, data: SimulatedData, on_round: OnRound | None) -> None:
    """Run, or go on with, the run in `folder`, with all clients in this process.

    Raises:
        FedlearnError: the run is refused, or cannot finish.
    """
    with grid_of(folder, data) as grid:
        run_apps(grid, folder, data, on_round)


def grid_of(folder: RunFolder, data: SimulatedData) -> AbstractContextManager[InProcessGrid]:
    """All clients of the run in `folder`, as they answer for as long as the context is."""
    return (_grid_of_agents if data.config.secure_aggregation.masking else _grid_of_cohorts)(folder, data)


@contextmanager
def _grid_of_agents(folder: RunFolder, data: SimulatedData) -> Iterator[InProcessGrid]:
    """A grid of agents that each mask what they send."""
    with closing(AgentPool(data, folder.path)) as pool:
        yield grid_of_clients(data.population_size, pool.handle, pool.handle_many)


@contextmanager
def _grid_of_cohorts(folder: RunFolder, data: SimulatedData) -> Iterator[InProcessGrid]:
    """A grid that sums whole cohorts: nothing is masked, so no client need speak for itself."""
    faults = DropOuts(data.config.runtime.dropout, data.config.secure_aggregation.planned_cohort)
    with closing(SimulatedCohorts(data, folder.path)) as holders:

        def sums_at(progress: Progress) -> _LossyCohort:
            return _LossyCohort(holders, faults, (progress.session, progress.round + 1, progress.attempt))

        yield grid_of_sums(data.population_size, sums_at)


@dataclass(frozen=True, slots=True)
class _LossyCohort:
    """Implements `attempts.CohortSums`, with the drop-outs that the run simulates."""

    holders: SimulatedCohorts
    faults: DropOuts
    position: Position

    def agree(self, cohort: Sequence[int], config: bytes) -> Sequence[int]:
        fault = self.faults.at(ADVERTISE, cohort)
        asked = [member for member in cohort if member not in fault.unasked]
        return [m for m in self.holders.agree(self.position, asked, config) if m not in fault.lost]

    def total(self, members: Sequence[int], model: bytes) -> Summed:
        fault = self.faults.at(MASKED, members)
        asked = [member for member in members if member not in fault.unasked]
        return self.holders.total(self.position, asked, model, lost=fault.lost)
