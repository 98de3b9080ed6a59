"""Commands that look and do not train: `plan`, `report`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedlearn.cli.statements import guarantee_lines
from fedlearn.config import RunConfig
from fedlearn.errors import ConfigError

if TYPE_CHECKING:
    from fedlearn.privacy.calibration import Plan

__all__ = ["plan", "report"]

_out = Console(highlight=False)


def plan(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario, or a run's TOML file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, any number of times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Show what a run would guarantee and cost, without running it; refuse what cannot be private."""
    config = RunConfig.load(scenario, set_ or [])
    from fedlearn import simulation

    try:
        planned = simulation.plan(config)
    except ConfigError as error:
        if as_json:
            typer.echo(json.dumps({"refusals": [str(error)], "warnings": []}))
        raise
    if as_json:
        told: dict[str, Any] = {**planned.as_dict(), "refusals": []}
        typer.echo(json.dumps(told))
    else:
        _show(planned, masking=config.secure_aggregation.masking)


def _show(planned: "Plan", *, masking: bool) -> None:
    table = Table(show_header=False, box=None)
    rows = {
        "mode": planned.mode,
        "noise multiplier": f"{planned.noise_multiplier:g}",
        "noise to signal": f"{planned.noise_to_signal:.3g} (norm of the noise over the largest possible sum)",
        "noise share of a client": f"{planned.noise_std} grid units of 2^-{planned.scale_bits}",
        "sensitivity": f"{planned.sensitivity} grid units",
        "model": f"{planned.dimension} parameters; a client sends {planned.bytes_per_round} bytes a round",
        "cohort": f"{planned.planned_cohort} clients, at least {planned.min_survivors} in every sum",
        "colluders": "not assumed" if planned.max_colluders is None else f"up to {planned.max_colluders}",
        "releases of a client": f"at most {planned.releases}",
        "largest scale_bits": str(planned.largest_scale_bits),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    _out.print(table)
    for line in guarantee_lines(planned.guarantees, masking=masking):
        _out.print(line, markup=False, soft_wrap=True)
    for warning in planned.warnings:
        _out.print(f"warning: {warning}", markup=False, soft_wrap=True, style="yellow")


def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Draw a run's report.html again."""
    from fedlearn.report import write_report

    typer.echo(str(write_report(run)))
