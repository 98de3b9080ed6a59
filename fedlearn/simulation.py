"""A whole simulation: the same apps as in a deployment, on one machine, with a run folder as the result."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MethodType
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import nn

from fedlearn.agent.simulated import SimulatedData, data_options, load_simulated_data
from fedlearn.checkpoint import Progress, RunFolder, load_run
from fedlearn.config import RunConfig
from fedlearn.data.preprocessing import Frame, preprocess_frame
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.flower.in_process_engine import run_in_process
from fedlearn.flower.ray_engine import check_ray, run_on_ray
from fedlearn.flower.strategies import check_options
from fedlearn.policy import Policy
from fedlearn.privacy.calibration import Plan, guarantees_after
from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.report import write_report
from fedlearn.rounds import OnRound, RoundResult, releases_booked
from fedlearn.training.device import pick_device
from fedlearn.training.evaluate import Scores, evaluate
from fedlearn.vector import layout_of, write_parameters

__all__ = ["RoundResult", "RunResult", "check_output", "load_model", "plan", "resume", "simulate"]

_UNPROTECTED = (
    "the moment of a reply: how long a client's training takes",
    "which clients take part in which round",
    "the sizes of messages and the schema of the data, which are the same for every client",
    "the choice of hyper-parameters, if it was made by looking at private data",
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a simulation reached. `guarantees` count all that was released, aborted too; empty: NOT PRIVATE."""

    run_dir: Path
    accuracy: float | None
    loss: float | None
    rounds: int
    seconds_per_round: float
    guarantees: tuple[Guarantee, ...]
    masking: bool
    noise: str

    @property
    def private(self) -> bool:
        """Whether any guarantee holds."""
        return bool(self.guarantees)

    def as_dict(self) -> dict[str, Any]:
        """The object that `fedlearn simulate --json` prints."""
        return {
            "accuracy": self.accuracy,
            "guarantees": [guarantee.as_dict() for guarantee in self.guarantees],
            "masking": self.masking,
            "noise": self.noise,
            "private": self.private,
            "rounds": self.rounds,
            "seconds_per_round": self.seconds_per_round,
            "run_dir": str(self.run_dir),
        }


def plan(config: RunConfig) -> Plan:
    """What the run's noise, divisors and guarantee will be, without running it.

    Raises:
        ConfigError: the plan is refused, with the reason.
    """
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
        RunFailedError: too few clients took part; the folder is intact and can be resumed.
    """
    data = load_simulated_data(config, progress)
    _check_before_writing(data)
    folder = _new_folder(config, output)
    folder.write("config.toml", config.to_toml().encode())
    if config.source:
        folder.write("origin.txt", str(config.source).encode())
    return _run(folder, data, on_round)


def resume(
    run_dir: Path | str, on_round: OnRound | None = None, *, progress: Callable[[int, int], None] | None = None
) -> RunResult:
    """Go on with an interrupted run from its last finished round; what was released before counts.

    Raises:
        ConfigError: the folder holds no run.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.file("config.toml").is_file():
        raise ConfigError(f"{run_dir}: no run folder; expected one with config.toml, as `fedlearn simulate` writes it")
    config = load_run(folder.file("config.toml"))
    return _run(folder, load_simulated_data(config, progress), on_round)


def load_model(run_dir: Path | str) -> nn.Module:
    """The trained model of a run folder, in `eval` mode, with a method `preprocess(frame)`.

    `preprocess` maps a data frame, or a mapping of column names to values, to (n, features) float32 by the public
    bounds of `[data.columns]`, as the clients did.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.file("model.safetensors").is_file():
        raise ConfigError(f"{run_dir}: no model.safetensors; expected the folder of a finished run")
    data = load_simulated_data(load_run(folder.file("config.toml")))
    model = data.build_model(data.config)
    tensors = load_file(folder.file("model.safetensors"))
    layout = layout_of(model)
    if {name: tensors[name].shape for name in tensors} != dict(zip(layout.names, layout.shapes, strict=True)):
        raise ConfigError(f"{run_dir}: model.safetensors does not fit the model that config.toml names")
    write_parameters(model, layout.join(tensors))
    columns = data_options(data.config).columns

    def preprocess(_: nn.Module, frame: Frame) -> NDArray[Any]:
        if not columns:
            raise ConfigError("preprocess needs [data.columns], which only csv and parquet runs have")
        return preprocess_frame(frame, columns)

    model.preprocess = MethodType(preprocess, model)  # type: ignore[assignment]  # a method of this one module
    return model.eval()


def _check_before_writing(data: SimulatedData) -> None:
    """What would be refused later is refused before there is a folder."""
    _ = data.plan
    if data.config.runtime.engine == "ray":
        check_ray()
    pick_device(data.config.runtime.device)
    check_options(data.config.training.strategy, data.config.training.strategy_options)


def check_output(path: Path) -> None:
    """Refuse a run folder that is there already and not empty.

    Raises:
        ConfigError: it is; nothing was touched.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--output {path}: exists and is not empty; name a new folder, nothing was overwritten")


def _new_folder(config: RunConfig, output: Path | str | None) -> RunFolder:
    scenario = config.source.stem if config.source else "run"
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = Path(output) if output is not None else Path("runs") / f"{moment}-{scenario}"
    if output is None:
        attempt = 1
        while path.exists():
            attempt += 1
            path = Path("runs") / f"{moment}-{scenario}-{attempt}"
    check_output(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {path}: the folder cannot be made: {error.strerror}") from None
    return RunFolder(path)


def _run(folder: RunFolder, data: SimulatedData, on_round: OnRound | None) -> RunResult:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    _ENGINES[data.config.runtime.engine](folder, data, on_round)
    return _conclude(folder, data)


_Engine = Callable[[RunFolder, SimulatedData, OnRound | None], None]


_ENGINES: Mapping[str, _Engine] = {"in-process": run_in_process, "ray": run_on_ray}


def _conclude(folder: RunFolder, data: SimulatedData) -> RunResult:
    """Model, summary and report of a finished run."""
    stored = folder.load_checkpoint()
    if stored is None or stored[0].round < data.config.run.rounds:
        raise RunFailedError(f"the run in {folder.path} did not finish; go on with --resume {folder.path}")
    progress, weights, _ = stored
    model = data.build_model(data.config)
    device = pick_device(data.config.runtime.device)
    layout = layout_of(model)
    tensors = {name: part.astype("float32") for name, part in layout.split(weights).items()}
    folder.write("model.safetensors", save(tensors))
    scores = evaluate(model, weights, data.test, device=device) if data.test is not None else None
    summary = _summary(folder, data, progress, scores)
    folder.write_json("summary.json", summary)
    write_report(folder.path)
    return RunResult(
        run_dir=folder.path,
        accuracy=summary["accuracy"],
        loss=summary["loss"],
        rounds=summary["rounds"],
        seconds_per_round=summary["seconds_per_round"],
        guarantees=_guarantees(data, progress),
        masking=summary["masking"],
        noise=summary["noise"],
    )


def _guarantees(data: SimulatedData, progress: Progress) -> tuple[Guarantee, ...]:
    booked = releases_booked(data.config, data.population_size, progress.attempts_asked)
    return guarantees_after(data.plan, booked)


def _summary(folder: RunFolder, data: SimulatedData, progress: Progress, scores: Scores | None) -> dict[str, Any]:
    config, planned = data.config, data.plan
    rounds = folder.lines("metrics.jsonl")
    guarantees = _guarantees(data, progress)
    scored = asdict(scores) if scores else {"accuracy": None, "loss": None, "confusion": None, "per_class": None}
    return {
        "format": "fedlearn/v1/summary",
        "scenario": config.source.stem if config.source else "run",
        "started": progress.started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds_per_round": round(sum(line["seconds"] for line in rounds) / max(1, len(rounds)), 6),
        "engine": config.runtime.engine,
        "device": pick_device(config.runtime.device),
        "mode": config.privacy.mode,
        "private": bool(guarantees),
        "masking": config.secure_aggregation.masking,
        "noise": MECHANISMS[config.privacy.mode].noise_by,
        **scored,
        "classes": list(data.train.classes),
        "test_records": len(data.test) if data.test is not None else None,
        "rounds": progress.round,
        "attempts": progress.attempts_asked,
        "releases": releases_booked(config, data.population_size, progress.attempts_asked),
        "run_dir": str(folder.path),
        "guarantees": [guarantee.as_dict() for guarantee in guarantees],
        "plan": planned.as_dict(),
        "policy": Policy.for_simulation(config, planned).model_dump(mode="json"),
        "warnings": list(planned.warnings),
        "unprotected": list(_UNPROTECTED),
        "versions": {name: version(name) for name in ("fedlearn", "torch", "flwr", "opacus", "dp-accounting", "numpy")},
    }
