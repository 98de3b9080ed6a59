"""A whole simulation: the same apps as in a deployment, on one machine, with a run folder as the result."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedlearn.config.run_config import RunConfig
from fedlearn.config.schema import TABLES
from fedlearn.coordinator.conclusion import RunResult, conclude
from fedlearn.coordinator.pooled_data import SimulatedData, load_simulated_data
from fedlearn.coordinator.public_data import PublicData
from fedlearn.coordinator.run_data import OnRound, RoundResult
from fedlearn.errors import ConfigError
from fedlearn.flower.strategies import check_options
from fedlearn.host.quiet import quiet
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.round.tally import LocalWork
from fedlearn.run.checkpoint import RunFolder, fresh_folder, load_run
from fedlearn.simulation.engine import run_in_process
from fedlearn.simulation.processes import worker_count
from fedlearn.simulation.ray_engine import check_ray, run_on_ray
from fedlearn.simulation.ray_tasks import check_ray_address
from fedlearn.simulation.simulated import coordinator_key
from fedlearn.training.device import pick_device

__all__ = ["RoundResult", "RunResult", "check_output", "plan", "resume", "simulate"]


def plan(config: RunConfig) -> Plan:
    """What the run's noise, divisors and guarantee will be, without running it.

    A table without `data.path` is one that data holders have: its schema suffices. The roster then counts
    `data.population_size` members, or as many as are asked in a round: each of them takes part in all rounds, which is
    the most that a run can cost.

    Raises:
        ConfigError: the plan is refused, with the reason.
    """
    if config.data.dataset in TABLES and config.data.path is None:
        members = config.data.population_size or config.secure_aggregation.planned_cohort
        unread = config.model_copy(update={"data": config.data.model_copy(update={"public_test": None})})
        return PublicData.load(
            unread.found_in(config.source) if config.source else unread, population_size=members
        ).plan
    return load_simulated_data(config).plan


def simulate(
    config: RunConfig,
    on_round: OnRound | None = None,
    *,
    output: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RunResult:
    """Run a simulation and write its run folder, `output` or runs/<time>-<scenario>.

    `on_round` is called after each successful round, `progress` while records are turned into features.

    Raises:
        ConfigError: what the configuration asks for cannot work, or `output` is not empty.
        RunFailedError: too few clients took part, or none could train; the folder is intact and can be resumed.
    """
    data = load_simulated_data(config, progress)
    _check_before_writing(data)
    folder = _new_folder(config, output)
    folder.write("config.toml", config.to_toml().encode())
    if config.source:
        folder.write("origin.txt", os.fsencode(config.source))
    return _run(folder, data, on_round)


def resume(
    run_dir: Path | str, on_round: OnRound | None = None, *, progress: Callable[[int, int], None] | None = None
) -> RunResult:
    """Go on with an interrupted run from its last finished round; what was released before counts.

    Raises:
        ConfigError: the folder holds no run, or another process works on it.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.file("config.toml").is_file():
        raise ConfigError(f"{run_dir}: no run folder; expected one with config.toml, as `fedlearn simulate` writes it")
    config = load_run(folder.file("config.toml"))
    return _run(folder, load_simulated_data(config, progress), on_round)


def _check_before_writing(data: SimulatedData) -> None:
    """What would be refused later is refused before there is a folder."""
    _ = data.plan
    if data.config.runtime.engine == "ray":
        check_ray()
    elif data.config.runtime.ray_address is not None:
        check_ray_address(data.config.runtime.ray_address)
    worker_count(data.config.runtime.workers, pick_device(data.config.runtime.device))
    check_options(data.config.training.strategy, data.config.training.strategy_options)


def check_output(path: Path) -> None:
    """Refuse a run folder that is there already and not empty.

    Raises:
        ConfigError: it is; nothing was touched.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--output {path}: exists and is not empty; name a new folder, nothing was overwritten")


def _new_folder(config: RunConfig, output: Path | str | None) -> RunFolder:
    path = Path(output) if output is not None else fresh_folder(Path("runs"), config)
    check_output(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {path}: the folder cannot be made: {error.strerror}") from None
    return RunFolder(path)


def _run(folder: RunFolder, data: SimulatedData, on_round: OnRound | None) -> RunResult:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    engine, masking = data.config.runtime.engine, data.config.secure_aggregation.masking
    summed = engine == "in-process" and not masking
    noise = MECHANISMS[data.config.privacy.mode].noise.drawn_in_simulation(summed=summed)
    with folder.locked() as held, _failures_told_once():

        def after_round(result: RoundResult) -> None:
            LocalWork.of(held).refuse_if_all_failed(ended=False)
            if on_round:
                on_round(result)

        _ENGINES[engine](held, data, after_round)
        ended = conclude(held, data, engine=engine, noise=noise, key=coordinator_key(held.path))
        return replace(ended, unusable_rows=tuple(f"{place}, {why}" for place, why in data.unusable.items()))


@contextmanager
def _failures_told_once() -> Iterator[None]:
    """Local work that fails is counted here; a traceback for each client and round would say no more."""
    with quiet("fedlearn.round.contribution", logging.CRITICAL), quiet("fedlearn.training.local", logging.CRITICAL):
        yield


_Engine = Callable[[RunFolder, SimulatedData, OnRound | None], None]


_ENGINES: Mapping[str, _Engine] = {"in-process": run_in_process, "ray": run_on_ray}
