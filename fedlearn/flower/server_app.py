"""The ServerApp: it runs the rounds of a run folder over whatever grid it is given."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedlearn.agent.frames import REFUSAL, Frame
from fedlearn.agent.simulated import SimulatedData, load_simulated_data, simulated_roster
from fedlearn.attempts import STAGE_NAMES
from fedlearn.checkpoint import Progress, RunFolder, load_run
from fedlearn.config import RunConfig
from fedlearn.errors import FedlearnError, ProtocolError
from fedlearn.flower.drop_outs import DropOuts
from fedlearn.flower.failure import record_failure
from fedlearn.flower.records import MESSAGE_TYPES, pack, unpack
from fedlearn.flower.strategies import StrategyOptimizer
from fedlearn.privacy.calibration import epsilon_after
from fedlearn.privacy.clipping import Vector
from fedlearn.promise import Promise
from fedlearn.rounds import Coordinator, OnRound, new_progress, run_rounds
from fedlearn.training.device import pick_device
from fedlearn.training.evaluate import evaluate
from fedlearn.vector import layout_of, read_parameters

__all__ = ["app", "make_server_app"]

_POLL_SECONDS: Final = 0.2
# On Ray the nodes are known at once and answer once Ray is up, which takes long where many start at a time.
_FIRST_REPLY_SECONDS: Final = 300
# Position of each stage in `stage_seconds`; who a node is, is asked before the first round.
_STAGE_SECONDS: Final = {"identify": 0, **{name: stage for stage, name in enumerate(STAGE_NAMES)}}


def make_server_app(data: SimulatedData | None = None, on_round: OnRound | None = None) -> ServerApp:
    """A ServerApp for the run folder whose `config.toml` the run config's key `config` names.

    `data` spares loading the public test data twice where agents and coordinator share a process.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        path = Path(str(context.run_config["config"]))
        folder = RunFolder(path.parent)
        try:
            coordinate(grid, folder, data or load_simulated_data(load_run(path)), on_round)
        except FedlearnError as error:
            if data is None:  # in another process than whoever started the run
                record_failure(folder, error)
            raise

    return app


def coordinate(grid: Grid, folder: RunFolder, data: SimulatedData, on_round: OnRound | None) -> None:
    """Run, or go on with, the run in `folder`.

    Raises:
        FedlearnError: the run is refused, or cannot finish.
    """
    config, plan = data.config, data.plan
    model = data.build_model(config)
    layout, device = layout_of(model), pick_device(config.runtime.device)
    optimizer = StrategyOptimizer(config.training.strategy, config.training.strategy_options, layout)
    stored = folder.load_checkpoint()
    progress, weights = (stored[0], stored[1]) if stored else (new_progress(config), read_parameters(model))
    if stored:
        optimizer.restore(stored[2])
    messenger = Messenger(grid, config)
    messenger.identify(data.population_size, progress)

    def scores(current: Vector) -> tuple[float, float] | None:
        if data.test is None:
            return None
        measured = evaluate(model, current, data.test, device=device)
        return measured.accuracy, measured.loss

    with Promise.of_run(folder, config, plan) as promise:
        run_rounds(
            Coordinator(
                config=config,
                plan=plan,
                layout=layout,
                population_size=data.population_size,
                roster=simulated_roster(folder.path) if config.secure_aggregation.masking else None,
                promise=promise,
                folder=folder,
                ask=messenger.ask,
                optimizer=optimizer,
                evaluate=scores,
                epsilon_after=lambda releases: epsilon_after(plan, releases),
                on_round=on_round,
                progress=progress,
                weights=weights,
            ),
            resumed=stored is not None,
        )


class Messenger:
    """Stages as Flower messages: one push, then a pull loop of our own until each stage's deadline."""

    def __init__(self, grid: Grid, config: RunConfig) -> None:
        self._grid, self._config = grid, config
        self._node_of: Mapping[int, int] = {}
        self._faults = DropOuts(config.runtime.dropout, config.secure_aggregation.planned_cohort)

    def identify(self, population_size: int, progress: Progress) -> None:
        """Learn which node is which member: members are numbered in the order of their client ids."""
        deadline = time.monotonic() + self._seconds("identify")
        nodes = list(self._grid.get_node_ids())
        while len(nodes) < population_size and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)  # nodes of another process come up one by one
            nodes = list(self._grid.get_node_ids())
        frame = Frame("identify", progress.session, 0, 0).to_bytes()
        replies = self._exchange("identify", dict.fromkeys(nodes, frame), patience=_FIRST_REPLY_SECONDS)
        order = sorted(replies, key=lambda node: replies[node])
        self._node_of = dict(enumerate(order))

    def ask(self, stage: str, progress: Progress, bodies: Mapping[int, bytes]) -> dict[int, bytes]:
        """Implements `rounds.Ask`; a client that fails, refuses in the clear or is late is left out."""
        fault = self._faults.at(stage, bodies)
        place = (progress.session, progress.round + 1, progress.attempt)
        frames = {
            self._node_of[member]: Frame(stage, *place, body).to_bytes()
            for member, body in bodies.items()
            if member in self._node_of and member not in fault.unasked
        }
        replies = self._exchange(stage, frames)
        answered = {member: replies[node] for member, node in self._node_of.items() if node in replies}
        return {member: reply for member, reply in answered.items() if member not in fault.lost}

    def _exchange(self, stage: str, frames: Mapping[int, bytes], *, patience: int = 0) -> dict[int, bytes]:
        """Replies until the stage's deadline, which begins to run with the first reply or after `patience` seconds."""
        contents = {frame: pack(frame) for frame in set(frames.values())}
        messages = [
            self._grid.create_message(contents[frame], MESSAGE_TYPES[stage], node, group_id=stage)
            for node, frame in frames.items()
        ]
        waiting = set(self._grid.push_messages(messages)) if messages else set()
        seconds = self._seconds(stage)
        deadline = time.monotonic() + patience + seconds
        replies: dict[int, bytes] = {}
        while waiting:
            for message in self._grid.pull_messages(list(waiting)):
                deadline = min(deadline, time.monotonic() + seconds)
                waiting.discard(message.metadata.reply_to_message_id)
                reply = _reply(message)
                if reply is not None:
                    replies[message.metadata.src_node_id] = reply
            if not waiting or time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        return replies

    def _seconds(self, stage: str) -> int:
        return self._config.secure_aggregation.stage_seconds[_STAGE_SECONDS[stage]]


def _reply(message: Message) -> bytes | None:
    """A client's answer; None for a failed client, a refusal, or a message of another shape."""
    if message.has_error():
        return None
    try:
        body = unpack(message.content)
    except ProtocolError:
        return None
    return None if body == REFUSAL else body


app = make_server_app()
