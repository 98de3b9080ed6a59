"""The coordinator of one run: it loads what it may know of the data and drives the rounds over a Flower grid."""

from typing import Final

from flwr.serverapp import Grid

from fedlearn.coordinator.attesting import collect_attestations
from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.coordinator.public_data import PublicData
from fedlearn.coordinator.rounds import Coordinator, new_progress
from fedlearn.coordinator.run_data import OnRound, RunData
from fedlearn.coordinator.server_noise_booking import ServerNoiseBooking
from fedlearn.flower.in_process_grid import InProcessGrid
from fedlearn.flower.messenger import Messenger
from fedlearn.flower.strategies import StrategyOptimizer
from fedlearn.model.layout import write_model
from fedlearn.model.vector import layout_of, read_parameters
from fedlearn.policy.roster import Roster
from fedlearn.privacy.calibration import epsilon_after
from fedlearn.privacy.clipping import Vector
from fedlearn.run.checkpoint import RunFolder, load_run
from fedlearn.secagg.transcript import Position
from fedlearn.stages import ATTEST
from fedlearn.training.device import pick_device
from fedlearn.training.evaluate import evaluate

__all__ = ["coordinate", "load_data"]

# Attempts, each of a stage's time: clients of a deployment that are away come back, be it after an hour.
_PATIENCE: Final = 100


def load_data(folder: RunFolder, *, deployed: bool) -> RunData:
    """What a coordinator in a process of its own knows of the data of the run in `folder`.

    Raises:
        ConfigError: the data cannot be used.
    """
    config = load_run(folder.file("config.toml"))
    if not deployed:
        return load_simulated_data(config)
    return PublicData.load(config, population_size=len(folder.roster().members))


def coordinate(
    grid: Grid, folder: RunFolder, data: RunData, on_round: OnRound | None, *, deployed: bool = False
) -> None:
    """Run, or go on with, the run in `folder`. At the end of a deployed one, every member is asked what it booked.

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
    roster = folder.roster() if config.secure_aggregation.masking else None
    messenger = Messenger(grid, config, roster)
    sums_at = grid.sums_at if isinstance(grid, InProcessGrid) else None
    if sums_at is None:
        messenger.identify(data.population_size, progress)

    def scores(current: Vector) -> tuple[float, float] | None:
        if data.test is None:
            return None
        measured = evaluate(model, current, data.test, device=device)
        return measured["accuracy"], measured["loss"]

    with ServerNoiseBooking.of_run(folder, config, plan) as server_noise:
        coordinator = Coordinator(
            config=config,
            plan=plan,
            layout=layout,
            population_size=data.population_size,
            roster=roster,
            server_noise=server_noise,
            folder=folder,
            ask=messenger.ask,
            sums_at=sums_at,
            optimizer=optimizer,
            evaluate=scores,
            epsilon_after=lambda releases: epsilon_after(plan, releases),
            on_round=on_round,
            progress=progress,
            weights=weights,
        )
        if deployed:
            coordinator.patience = _PATIENCE
        coordinator.run(resumed=stored is not None)
    if deployed and roster is not None:
        _ask_what_was_booked(coordinator, roster)


def _ask_what_was_booked(coordinator: Coordinator, roster: Roster) -> None:
    progress, event = coordinator.progress, coordinator.plan.ledger_event
    collect_attestations(
        coordinator.folder,
        ask=lambda bodies, receive: coordinator.ask(ATTEST, progress, bodies, receive),
        roster=roster,
        position=Position(bytes.fromhex(progress.session), progress.round + 1, progress.attempt),
        config=coordinator.config.to_bytes(),
        model=write_model(coordinator.weights, coordinator.layout),
        event=event.to_bytes() if event else None,
    )
