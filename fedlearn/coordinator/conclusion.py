"""The end of a run, simulated or deployed: model, certificate, summary and report, from its checkpoint and lines."""

import logging
import math
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fedlearn.certificate.attestation import Attestation, unprotected
from fedlearn.certificate.build import Evidence, certify
from fedlearn.coordinator.attesting import attestations_in
from fedlearn.coordinator.public_data import PublicData
from fedlearn.coordinator.run_data import RunData
from fedlearn.crypto.key_files import read_signing_key
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import FedlearnError, RunFailedError
from fedlearn.host.logs import log_as_json
from fedlearn.host.memory_limits import is_disk_full
from fedlearn.ledger import COORDINATOR, Ledger
from fedlearn.model.layout import Layout
from fedlearn.model.vector import layout_of
from fedlearn.policy.roster import SIMULATED_COORDINATOR
from fedlearn.policy.run_policy import Policy
from fedlearn.privacy.calibration import guarantees_after
from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.report import write_report
from fedlearn.round.tally import LocalWork
from fedlearn.run.checkpoint import Progress, RunFolder, load_run
from fedlearn.run.failure import record_failure
from fedlearn.run.trained import MODEL_FILE, model_file
from fedlearn.training.device import pick_device
from fedlearn.training.evaluate import evaluate
from fedlearn.wording import one_line

__all__ = ["CERTIFICATE_FILE", "RunResult", "conclude", "main"]

CERTIFICATE_FILE: Final = "certificate.json"
DEPLOYED: Final = "deployed"

_log = logging.getLogger(__name__)


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
    unusable_rows: tuple[
        str, ...
    ] = ()  # file, row and why; the records are on this machine, so whoever runs it may know
    local_work: LocalWork | None = None  # of a simulation

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
            "unusable_rows": len(self.unusable_rows),
            "local_work_failed": self.local_work.failed if self.local_work else None,
        }


def conclude(folder: RunFolder, data: RunData, *, engine: str, noise: str, key: SigningKey) -> RunResult:
    """Write model, certificate, summary and report of a finished run.

    `engine` carried its messages, `noise` is who drew the noise; `key` is the coordinator's, which signs the
    certificate.

    Raises:
        RunFailedError: it is not finished; in a simulation nobody could train, in a deployment nobody attested.
    """
    LocalWork.of(folder).refuse_if_all_failed(ended=True)
    stored = folder.load_checkpoint()
    if stored is None or stored[0].round < data.config.run.rounds:
        raise RunFailedError(f"the run in {folder.path} did not finish; go on with --resume {folder.path}")
    progress, weights, _ = stored
    model = data.build_model(data.config)
    device = pick_device(data.config.runtime.device)
    layout = layout_of(model)
    content = model_file(weights, layout, data.config, input_shape=data.input_shape, classes=data.classes)
    folder.write(MODEL_FILE, content)
    scores = evaluate(model, weights, data.test, device=device) if data.test is not None else None
    summary = _summary(folder, data, progress, scores) | {"engine": engine, "noise": noise}
    evidence = _attested(folder, _evidence(folder, data, progress, summary, layout=layout, model_file=content), key)
    if evidence.kind == "deployment" and not evidence.attestations:
        raise RunFailedError(
            f"none of its {data.population_size} data holders attested what it booked, so no guarantee can be stated; "
            f"the model lies in {folder.file(MODEL_FILE)}"
        )
    guarantees = guarantees_after(data.plan, evidence.releases)
    simulated = evidence.kind == "simulation"  # of a deployed run's policies none is known here
    summary |= {
        "policy": Policy.for_simulation(data.config, data.plan).model_dump(mode="json") if simulated else {},
        "private": bool(guarantees),
        "releases": evidence.releases,
        "guarantees": [guarantee.as_dict() for guarantee in guarantees],
        "unprotected": list(unprotected(evidence.attestations)),
    }
    folder.write(CERTIFICATE_FILE, certify(evidence, key))
    folder.write_json("summary.json", summary)
    write_report(folder.path)
    return RunResult(
        run_dir=folder.path,
        accuracy=summary["accuracy"],
        loss=summary["loss"],
        rounds=summary["rounds"],
        seconds_per_round=summary["seconds_per_round"],
        guarantees=guarantees,
        masking=summary["masking"],
        noise=summary["noise"],
        local_work=None if engine == DEPLOYED else LocalWork.of(folder),
    )


def _summary(folder: RunFolder, data: RunData, progress: Progress, scores: Mapping[str, Any] | None) -> dict[str, Any]:
    config, planned = data.config, data.plan
    rounds, local_work = folder.lines("metrics.jsonl"), LocalWork.of(folder)
    scored = dict(scores) if scores else {"accuracy": None, "loss": None, "confusion": None, "per_class": None}
    if scored["loss"] is not None and not math.isfinite(scored["loss"]):
        scored["loss"] = None  # weights are finite, what they give on some record is not
    return {
        "format": "fedlearn/v1/summary",
        "scenario": config.source.stem if config.source else "run",
        "started": progress.started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds_per_round": round(sum(line["seconds"] for line in rounds) / max(1, len(rounds)), 6),
        "device": pick_device(config.runtime.device),
        "mode": config.privacy.mode,
        "masking": config.secure_aggregation.masking,
        **scored,
        "classes": list(data.classes),
        "test_records": len(data.test) if data.test is not None else None,
        "rounds": progress.round,
        "attempts": progress.attempts_asked,
        "run_dir": str(folder.path),
        "plan": planned.as_dict(),
        "local_work": asdict(local_work),
        "warnings": [*planned.warnings, *filter(None, [local_work.sentence])],
        "versions": {name: version(name) for name in ("fedlearn", "torch", "flwr", "opacus", "dp-accounting", "numpy")},
    }


def _evidence(
    folder: RunFolder,
    data: RunData,
    progress: Progress,
    summary: Mapping[str, Any],
    *,
    layout: Layout,
    model_file: bytes,
) -> Evidence:
    """What the run left behind, but for what was booked."""
    plan = data.plan
    return Evidence(
        kind="deployment" if summary["engine"] == DEPLOYED else "simulation",
        session=progress.session,
        started=progress.started,
        ended=summary["ended"],
        purpose=one_line(summary["scenario"]),
        config=data.config.to_bytes(),
        population_size=data.population_size,
        noise=summary["noise"],
        noise_std=plan.noise_std,
        layout=layout,
        model_file=model_file,
        attempts=folder.lines("events.jsonl"),
        head=None,
        entries=None,
        attestations=(),
        roster_hash=folder.roster().sha256 if data.config.secure_aggregation.masking else None,
        accuracy=summary["accuracy"],
        loss=summary["loss"],
        audits=(),
        versions=summary["versions"],
    )


def _attested(folder: RunFolder, evidence: Evidence, key: SigningKey) -> Evidence:
    """The same with what was booked: by the data holders, or in a simulation in the one ledger, signed once."""
    secret = evidence.request.cohorts == "poisson"  # then only the coordinator may know who took part
    with closing(Ledger(folder.file("ledger.db"))) as ledger:
        state = ledger.session(evidence.session, COORDINATOR if secret else None)
    known = replace(evidence, head=state.head, entries=state.entries)
    if evidence.kind == "deployment":
        return replace(known, attestations=attestations_in(folder))
    signed = Attestation.sign(
        known.attested(releases=state.releases, ledger_head=state.head, events_hash=state.events_hash),
        key,
        client_id=SIMULATED_COORDINATOR,
        dataset_id=evidence.kind,
        entries=state.entries,
    )
    return replace(known, attestations=(signed,))


def main(folder: Path, key_file: Path) -> int:
    """Conclude the deployed run in `folder`, signed with the seed in `key_file`; gives the exit code."""
    run = RunFolder(folder)
    try:
        population = len(run.roster().members)
        data = PublicData.load(load_run(run.file("config.toml")), population_size=population)
        noise, key = MECHANISMS[data.config.privacy.mode].noise.name, read_signing_key(key_file)
        conclude(run, data, engine=DEPLOYED, noise=noise, key=key)
    except FedlearnError as error:
        _log.error("%s", one_line(str(error)))
        if not is_disk_full(run.path):  # else it is tried again
            record_failure(run, error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    log_as_json()
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
