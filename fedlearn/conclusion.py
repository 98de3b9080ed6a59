"""The end of a run, simulated or deployed: model, summary and report, from its checkpoint and lines."""

import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from fedlearn.checkpoint import Progress, RunFolder, load_run
from fedlearn.errors import FedlearnError, RunFailedError
from fedlearn.flower.public_data import PublicData
from fedlearn.policy import Policy
from fedlearn.privacy.calibration import guarantees_after
from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.report import write_report
from fedlearn.rounds import RunData, releases_booked
from fedlearn.training.device import pick_device
from fedlearn.training.evaluate import Scores, evaluate
from fedlearn.vector import layout_of
from fedlearn.wording import one_line

__all__ = ["RunResult", "conclude", "main"]

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


def conclude(folder: RunFolder, data: RunData, *, engine: str, noise: str) -> RunResult:
    """Write model, summary and report of a finished run; `engine` carried its messages, `noise` is who drew the noise.

    Raises:
        RunFailedError: it is not finished.
    """
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
    summary = _summary(folder, data, progress, scores, engine, noise)
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


def _guarantees(data: RunData, progress: Progress) -> tuple[Guarantee, ...]:
    booked = releases_booked(data.config, data.population_size, progress.attempts_asked)
    return guarantees_after(data.plan, booked)


def _summary(
    folder: RunFolder, data: RunData, progress: Progress, scores: Scores | None, engine: str, noise: str
) -> dict[str, Any]:
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
        "engine": engine,
        "device": pick_device(config.runtime.device),
        "mode": config.privacy.mode,
        "private": bool(guarantees),
        "masking": config.secure_aggregation.masking,
        "noise": noise,
        **scored,
        "classes": list(data.classes),
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


def main(folder: Path) -> int:
    """Conclude the deployed run in `folder`; gives the exit code."""
    run = RunFolder(folder)
    try:
        population = len(run.roster().members)
        data = PublicData.load(load_run(run.file("config.toml")), population_size=population)
        conclude(run, data, engine="deployed", noise=MECHANISMS[data.config.privacy.mode].noise_by)
    except FedlearnError as error:
        sys.stderr.write(f"{one_line(str(error))}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
