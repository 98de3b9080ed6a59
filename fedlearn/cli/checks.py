"""Commands that look and do not train: `plan`, `report`, `verify`, `doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlearn.cli.options import AsJson, Home, print_json
from fedlearn.cli.statements import guarantee_lines, notes_on
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.host.home import home_folder
from fedlearn.wording import one_line

if TYPE_CHECKING:
    from fedlearn.certificate.verify import Verification
    from fedlearn.deployment.doctor import Check
    from fedlearn.privacy.calibration import Plan

__all__ = ["doctor", "plan", "report", "verify"]


def plan(
    scenario: Annotated[str, typer.Argument(hidden=True)],
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, any number of times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Show what a run would guarantee and cost, without running it; refuse what cannot be private.

    SCENARIO is the name of a shipped scenario or a run's TOML file.
    """
    from fedlearn.config.run_config import RunConfig

    config = RunConfig.load(scenario, set_ or [])
    from fedlearn.simulation import run as simulation  # torch loads here: a wrong key is answered before

    try:
        planned = simulation.plan(config)
    except ConfigError as error:
        if as_json:
            print_json({"refusals": [str(error)], "warnings": []})
        raise
    if as_json:
        warnings = [*planned.warnings, *notes_on(config)]
        told: dict[str, Any] = {**planned.as_dict(), "warnings": warnings, "refusals": []}
        print_json(told)
    else:
        _show(planned, masking=config.secure_aggregation.masking)
        for note in notes_on(config):
            typer.echo(f"note: {note}")


def _show(planned: "Plan", *, masking: bool) -> None:
    from fedlearn.privacy.mechanisms import MECHANISMS

    rows = {
        "mode": planned.mode,
        "noise multiplier": f"{planned.noise_multiplier:g}",
        "noise to signal": f"{planned.noise_to_signal:.3g} (norm of the noise over the largest possible sum)",
        "noise": f"{planned.noise_std} grid units, drawn by {MECHANISMS[planned.mode].noise.drawn_by}",
        "sensitivity": f"{planned.sensitivity} grid units",
        "model": f"{planned.dimension} parameters; a client sends {planned.bytes_per_round} bytes a round",
        "cohort": f"{planned.planned_cohort} clients, at least {planned.min_survivors} in every sum",
        "colluders": "not assumed" if planned.max_colluders is None else f"up to {planned.max_colluders}",
        "releases of a client": f"at most {planned.releases}",
        "largest scale_bits": str(planned.largest_scale_bits),
    }
    for name, value in rows.items():
        typer.echo(f" {name:25}{value}")
    for line in guarantee_lines(planned.guarantees, masking=masking):
        typer.echo(line)
    for warning in planned.warnings:
        typer.secho(f"warning: {warning}", fg="yellow")


def report(run: Annotated[Path, typer.Argument(hidden=True)]) -> None:
    """Draw the report.html of the run folder RUN again."""
    from fedlearn.report import write_report

    typer.echo(str(write_report(run)))


def verify(
    certificate: Annotated[Path, typer.Argument(hidden=True)],
    model: Annotated[Path, typer.Argument(hidden=True)],
    roster: Annotated[Path | None, typer.Option(help="The roster of the run; then the signers are named.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Check the certificate CERT of the model file MODEL, a line for each check; exit code 1 if any of them fails.

    CERT is a certificate.json, MODEL the model.safetensors that it is about. Nothing else is needed: no run folder, no
    network.
    """
    from fedlearn.bounded import MOST_MODEL_BYTES, read_bytes
    from fedlearn.certificate.verify import verify_certificate
    from fedlearn.policy.roster import Roster

    content, model_file = read_bytes(certificate), read_bytes(model, most=MOST_MODEL_BYTES)
    known = Roster.from_bytes(read_bytes(roster)) if roster else None
    try:
        verification = verify_certificate(content, model_file, known)
    except ConfigError as error:
        raise ConfigError(f"{certificate}: {error}") from None
    if as_json:
        print_json(verification.as_dict())
    else:
        _tell_verification(verification)
    if not verification.passed:
        raise FedlearnError(f"{certificate}: {verification.verdict}")


def doctor(
    run: Annotated[Path | None, typer.Argument(hidden=True)] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong: the installation, and the server's or the client's home; exit code 1 on an error.

    With RUN, a run's TOML file, records, policy and machine are judged by it. Rows of records that would be refused are
    named here, and nowhere else. Nothing is changed.
    """
    from fedlearn.deployment.doctor import examine

    checks = []
    for check in examine(home_folder(home), run):
        checks.append(check)
        if not as_json:
            _tell_check(check)
    if as_json:
        print_json({"checks": [check.as_dict() for check in checks]})
    failed = [check for check in checks if check.status == "error"]
    if failed:
        # The names alone: the sentence goes into a log, and a detail may be of somebody's row.
        names = ", ".join(dict.fromkeys(check.name for check in failed))
        raise FedlearnError(f"{len(failed)} of {len(checks)} checks failed: {names}")


def _tell_check(check: "Check") -> None:
    color = {"ok": None, "warning": "yellow", "error": "red"}[check.status]
    typer.secho(f" {check.status:9}{check.name:20} {one_line(check.detail)}", fg=color)
    if check.remedy:
        typer.echo(f"{'':11}what to do: {one_line(check.remedy)}")


def _tell_verification(verification: "Verification") -> None:
    for check in verification.checks:
        typer.echo(f" {'ok' if check.passed else 'FAILED':8}{check.name:20}{one_line(check.detail)}")
    for line in verification.cannot_show:
        typer.echo(f" not shown: {line}")
    if verification.passed:
        typer.echo(one_line(verification.verdict))
