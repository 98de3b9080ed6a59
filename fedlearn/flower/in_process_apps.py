"""The same two apps as in a deployment, over a grid in this process: all that a simulation needs of Flower."""

from collections.abc import Callable, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlearn.coordinator.attempts import CohortSums
from fedlearn.coordinator.run_data import OnRound, RunData
from fedlearn.flower.client_app import make_client_app
from fedlearn.flower.in_process_grid import InProcessGrid
from fedlearn.flower.records import MESSAGE_TYPES, unpack
from fedlearn.flower.server_app import make_server_app
from fedlearn.run.checkpoint import Progress, RunFolder

__all__ = ["grid_of_clients", "grid_of_sums", "run_apps"]


def run_apps(grid: InProcessGrid, folder: RunFolder, data: RunData, on_round: OnRound | None) -> None:
    """Run, or go on with, the run in `folder` over `grid`.

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
    make_server_app(data, on_round)(grid=grid, context=context)


def grid_of_clients(
    population_size: int,
    handle: Callable[[int, str, bytes], bytes],
    handle_many: Callable[[str, Mapping[int, bytes]], object],
) -> InProcessGrid:
    """A grid of clients that each answer for themselves: `handle` gives the reply of one to a frame of a stage.

    `handle_many` is told of a whole stage before: it computes all replies at once, which `handle` then has in memory.
    """

    def carry(context: Context, stage: str, frame: bytes, seconds: float) -> bytes:
        del seconds  # this process is the deadline's
        return handle(int(context.node_config["partition-id"]), stage, frame)

    stages = {message_type: stage for stage, message_type in MESSAGE_TYPES.items()}

    def prepare(message_type: str, messages: Mapping[int, Message]) -> None:
        handle_many(
            stages[message_type], {partition: unpack(message.content) for partition, message in messages.items()}
        )

    return InProcessGrid(make_client_app(carry), population_size, prepare)


def grid_of_sums(population_size: int, sums_at: Callable[[Progress], CohortSums]) -> InProcessGrid:
    """A grid that sums whole cohorts: nothing is masked, so no client need speak for itself."""
    return InProcessGrid(ClientApp(), population_size, sums_at=sums_at)  # an app that no message reaches
