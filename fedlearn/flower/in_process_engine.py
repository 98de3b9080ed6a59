"""The in-process engine: the same two apps as in a deployment, over a grid that lives in one process."""

from collections.abc import Mapping

from flwr.app import Context, Message, RecordDict

from fedlearn.agent.simulated import AgentPool, SimulatedData
from fedlearn.checkpoint import RunFolder
from fedlearn.flower.client_app import make_client_app
from fedlearn.flower.in_process_grid import InProcessGrid
from fedlearn.flower.records import MESSAGE_TYPES, unpack
from fedlearn.flower.server_app import make_server_app
from fedlearn.rounds import OnRound

__all__ = ["run_in_process"]


def run_in_process(folder: RunFolder, data: SimulatedData, on_round: OnRound | None) -> None:
    """Run, or go on with, the run in `folder`, with all agents in this process.

    Raises:
        FedlearnError: the run is refused, or cannot finish.
    """
    pool = AgentPool(data, folder.path)

    def carry(context: Context, stage: str, frame: bytes, seconds: float) -> bytes:
        del seconds  # this process is the deadline's
        return pool.handle(int(context.node_config["partition-id"]), stage, frame)

    stages = {message_type: stage for stage, message_type in MESSAGE_TYPES.items()}

    def prepare(message_type: str, messages: Mapping[int, Message]) -> None:
        # The cohort's answers are computed at once and kept by the agents; the apps then get them from memory.
        frames = {partition: unpack(message.content) for partition, message in messages.items()}
        pool.handle_many(stages[message_type], frames)

    grid = InProcessGrid(make_client_app(carry), data.population_size, prepare)
    context = Context(
        run_id=0,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config={"config": str(folder.file("config.toml"))},
    )
    try:
        make_server_app(data, on_round)(grid=grid, context=context)
    finally:
        pool.close()
