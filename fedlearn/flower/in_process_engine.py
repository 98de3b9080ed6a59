"""The in-process engine: the same two apps as in a deployment, over a grid that lives in one process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlearn.agent.cohorts import Position, SimulatedCohorts
from fedlearn.agent.simulated import AgentPool, SimulatedData
from fedlearn.attempts import Summed
from fedlearn.checkpoint import Progress, RunFolder
from fedlearn.flower.client_app import make_client_app
from fedlearn.flower.drop_outs import DropOuts
from fedlearn.flower.in_process_grid import InProcessGrid
from fedlearn.flower.records import MESSAGE_TYPES, unpack
from fedlearn.flower.server_app import make_server_app
from fedlearn.rounds import OnRound

__all__ = ["grid_of", "run_in_process"]


def run_in_process(folder: RunFolder, data: SimulatedData, on_round: OnRound | None) -> None:
    """Run, or go on with, the run in `folder`, with all clients in this process.

    Raises:
        FedlearnError: the run is refused, or cannot finish.
    """
    context = Context(
        run_id=0,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config={"config": str(folder.file("config.toml"))},
    )
    with grid_of(folder, data) as grid:
        make_server_app(data, on_round)(grid=grid, context=context)


def grid_of(folder: RunFolder, data: SimulatedData) -> AbstractContextManager[InProcessGrid]:
    """All clients of the run in `folder`, as they answer for as long as the context is."""
    return (_grid_of_agents if data.config.secure_aggregation.masking else _grid_of_cohorts)(folder, data)


@contextmanager
def _grid_of_agents(folder: RunFolder, data: SimulatedData) -> Iterator[InProcessGrid]:
    """A grid of agents that each mask what they send."""
    with closing(AgentPool(data, folder.path)) as pool:

        def carry(context: Context, stage: str, frame: bytes, seconds: float) -> bytes:
            del seconds  # this process is the deadline's
            return pool.handle(int(context.node_config["partition-id"]), stage, frame)

        stages = {message_type: stage for stage, message_type in MESSAGE_TYPES.items()}

        def prepare(message_type: str, messages: Mapping[int, Message]) -> None:
            # The cohort's answers are computed at once and kept by the agents; the apps then get them from memory.
            frames = {partition: unpack(message.content) for partition, message in messages.items()}
            pool.handle_many(stages[message_type], frames)

        yield InProcessGrid(make_client_app(carry), data.population_size, prepare)


@contextmanager
def _grid_of_cohorts(folder: RunFolder, data: SimulatedData) -> Iterator[InProcessGrid]:
    """A grid that sums whole cohorts: nothing is masked, so no client need speak for itself."""
    faults = DropOuts(data.config.runtime.dropout, data.config.secure_aggregation.planned_cohort)
    with closing(SimulatedCohorts(data, folder.path)) as holders:

        def sums_at(progress: Progress) -> _LossyCohort:
            return _LossyCohort(holders, faults, (progress.session, progress.round + 1, progress.attempt))

        yield InProcessGrid(ClientApp(), data.population_size, sums_at=sums_at)  # an app that no message reaches


@dataclass(frozen=True, slots=True)
class _LossyCohort:
    """Implements `attempts.CohortSums`, with the drop-outs that the run simulates."""

    holders: SimulatedCohorts
    faults: DropOuts
    position: Position

    def agree(self, cohort: Sequence[int], config: bytes) -> Sequence[int]:
        fault = self.faults.at("advertise", cohort)
        asked = [member for member in cohort if member not in fault.unasked]
        return [m for m in self.holders.agree(self.position, asked, config) if m not in fault.lost]

    def total(self, members: Sequence[int], model: bytes) -> Summed:
        fault = self.faults.at("masked", members)
        asked = [member for member in members if member not in fault.unasked]
        return self.holders.total(self.position, asked, model, lost=fault.lost)
