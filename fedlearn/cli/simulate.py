"""`fedlearn simulate`: many clients on one machine."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedlearn.cli.statements import guarantee_lines, percent
from fedlearn.config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.shipped import scenario_names, scenario_path

if TYPE_CHECKING:
    from fedlearn.rounds import RoundResult
    from fedlearn.simulation import RunResult

__all__ = ["simulate"]

_err = Console(stderr=True, highlight=False)


def simulate(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario, or a run's TOML file.")] = "digits",
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, any number of times.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; by default runs/<time>-<scenario>.")] = None,
    engine: Annotated[str | None, typer.Option(help="in-process or ray; the same as --set runtime.engine=...")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Run so many times with fresh noise.")] = 1,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped scenarios.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Simulate a federation on this machine and write a run folder with model, metrics, events and report."""
    if list_:
        _list_scenarios()
        return
    overrides = [*(set_ or []), *([f"runtime.engine={engine}"] if engine else [])]
    if resume is not None:
        if overrides or output is not None or repeat > 1:
            raise ConfigError("--resume goes on with a run as it is; leave out --set, --output, --engine and --repeat")
        results = [_resume(resume)]
    else:
        config = RunConfig.load(scenario, overrides)
        results = [_simulate(config, _numbered(output, number, repeat)) for number in range(1, repeat + 1)]
    _tell(results, as_json=as_json)


def _simulate(config: RunConfig, output: Path | None) -> "RunResult":
    from fedlearn import simulation  # torch and flwr load here, so that --help stays quick

    with _display(config) as (on_round, progress):
        return simulation.simulate(config, on_round, output=output, progress=progress)


def _resume(folder: Path) -> "RunResult":
    from fedlearn import simulation

    config_file = folder / "config.toml"
    if not config_file.is_file():
        raise ConfigError(f"--resume {folder}: no run folder; expected one with config.toml")
    with _display(RunConfig.load(config_file)) as (on_round, progress):
        return simulation.resume(folder, on_round, progress=progress)


def _numbered(output: Path | None, number: int, repeat: int) -> Path | None:
    return output / str(number) if output is not None and repeat > 1 else output


@contextmanager
def _display(
    config: RunConfig,
) -> Iterator[tuple[Callable[["RoundResult"], None], Callable[[int, int], None]]]:
    """Round, accuracy on public data, epsilon spent of the budget, time left; quiet where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    target, rounds = config.privacy.target_epsilon, config.run.rounds
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as bar:
        features = bar.add_task("features", total=None, visible=False, state="")
        task = bar.add_task("round", total=rounds, state="")

        def on_round(result: "RoundResult") -> None:
            accuracy = "not evaluated" if result.accuracy is None else f"accuracy {percent(result.accuracy)}"
            spent = "NOT PRIVATE" if result.epsilon is None else f"epsilon {result.epsilon:.2f} of {target:g}"
            bar.update(task, completed=result.round, state=f"{accuracy}, {spent}")

        def on_features(done: int, total: int) -> None:
            bar.update(features, completed=done, total=total, visible=done < total)

        yield on_round, on_features


def _tell(results: list["RunResult"], *, as_json: bool) -> None:
    last = results[-1]
    told: dict[str, Any] = last.as_dict()
    scored = [result.accuracy for result in results if result.accuracy is not None]
    if len(results) > 1:
        told["accuracies"] = scored
        told["accuracy"] = fmean(scored) if scored else None
    accuracy = "not evaluated" if told["accuracy"] is None else f"accuracy {percent(told['accuracy'])}"
    many = f", mean of {len(results)} runs ({percent(min(scored))} to {percent(max(scored))})" if scored[1:] else ""
    _err.print(f"{accuracy}{many} after {last.rounds} rounds, {last.seconds_per_round:.3f} s a round", markup=False)
    if len(results) > 1:
        _err.print("The guarantee is that of one run; several runs on the same data add up.", markup=False)
    for line in guarantee_lines(last.guarantees, masking=last.masking):
        _err.print(line, markup=False, soft_wrap=True)
    _err.print(f"Run folder: {last.run_dir} (open {last.run_dir / 'report.html'})", markup=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(told))


def _list_scenarios() -> None:
    for name in scenario_names():
        first = scenario_path(name).read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:24}{first.lstrip('# ').partition(': ')[2]}")
