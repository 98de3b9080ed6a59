"""`fedlearn simulate`: many clients on one machine."""

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlearn.cli.options import print_json
from fedlearn.cli.statements import guarantee_lines, notes_on, percent
from fedlearn.errors import ConfigError
from fedlearn.host.shipped import scenario_names, scenario_path

if TYPE_CHECKING:
    from fedlearn.config.run_config import RunConfig
    from fedlearn.simulation.run import RunResult

__all__ = ["simulate"]


def simulate(
    scenario: Annotated[str | None, typer.Argument(hidden=True)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, any number of times.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; by default runs/<time>-<scenario>.")] = None,
    engine: Annotated[str | None, typer.Option(help="in-process or ray; the same as --set runtime.engine=...")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
    repeat: Annotated[int, typer.Option(help="Run so many times with fresh noise.", show_default=False)] = 1,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped scenarios.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Simulate a federation on this machine and write a run folder with model, metrics, events and report.

    SCENARIO is the name of a shipped scenario (see --list) or a run's TOML file; left out, it is digits.
    """
    if list_:
        _list_scenarios()
        return
    if repeat < 1:
        raise ConfigError(f"--repeat is {repeat}; expected an integer of at least 1")
    overrides = [*(set_ or []), *([f"runtime.engine={engine}"] if engine else [])]
    if resume is not None:
        if scenario or overrides or output is not None or repeat > 1:
            raise ConfigError(
                "--resume goes on with a run as it is; leave out the scenario, --set, --output, --engine and --repeat"
            )
        results = [_resume(resume)]
    else:
        from fedlearn.config.run_config import RunConfig

        config = RunConfig.load(scenario or "digits", overrides)
        for note in notes_on(config):
            _say(f"Note: {note}")
        results = _simulate(config, output, repeat)
    _tell(results, as_json=as_json)


def _simulate(config: "RunConfig", output: Path | None, repeat: int) -> list["RunResult"]:
    from fedlearn.cli.display import live_display
    from fedlearn.simulation import run as simulation  # torch and flwr load here, so that --help stays quick

    if output is not None and repeat > 1:
        simulation.check_output(output)  # each run gets a folder of its own in it
    results = []
    for number in range(1, repeat + 1):
        with live_display(config) as (on_round, progress):
            folder = output / str(number) if output is not None and repeat > 1 else output
            results.append(simulation.simulate(config, on_round, output=folder, progress=progress))
    return results


def _resume(folder: Path) -> "RunResult":
    from fedlearn.config.run_config import RunConfig

    config_file = folder / "config.toml"
    if not config_file.is_file():
        raise ConfigError(f"--resume {folder}: no run folder; expected one with config.toml")
    config = RunConfig.load(config_file)
    from fedlearn.cli.display import live_display
    from fedlearn.simulation import run as simulation

    with live_display(config) as (on_round, progress):
        return simulation.resume(folder, on_round, progress=progress)


def _tell(results: list["RunResult"], *, as_json: bool) -> None:
    last = results[-1]
    told: dict[str, Any] = last.as_dict()
    scored = [result.accuracy for result in results if result.accuracy is not None]
    if len(results) > 1:
        told["accuracies"] = scored
        told["accuracy"] = fmean(scored) if scored else None
    accuracy = "not evaluated" if told["accuracy"] is None else f"accuracy {percent(told['accuracy'])}"
    many = f", mean of {len(results)} runs ({percent(min(scored))} to {percent(max(scored))})" if scored[1:] else ""
    _say(f"{accuracy}{many} after {last.rounds} rounds, {last.seconds_per_round:.3f} s a round")
    if len(results) > 1:
        _say("The guarantee is that of one run; several runs on the same data add up.")
    if last.unusable_rows:
        _say(f"{len(last.unusable_rows)} rows cannot be used and count as absent; the first: {last.unusable_rows[0]}")
    for line in guarantee_lines(last.guarantees, masking=last.masking):
        _say(line)
    if last.local_work and last.local_work.sentence:
        _say(last.local_work.sentence)
    _say(f"Run folder: {last.run_dir} (open {last.run_dir / 'report.html'})")
    if as_json:
        print_json(told)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _list_scenarios() -> None:
    for name in scenario_names():
        first = scenario_path(name).read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:24}{first.lstrip('# ').partition(': ')[2]}")
