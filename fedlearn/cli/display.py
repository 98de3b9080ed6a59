"""What a person sees while a run goes on, on stderr: quiet where there is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedlearn.cli.statements import percent

if TYPE_CHECKING:
    from fedlearn.config.run_config import RunConfig
    from fedlearn.coordinator.run_data import RoundResult

__all__ = ["bar", "live_display"]


@contextmanager
def live_display(
    config: "RunConfig",
) -> Iterator[tuple[Callable[["RoundResult"], None], Callable[[int, int], None]]]:
    """Round, accuracy on public data, epsilon spent of the budget, time left; gives (on_round, on_features)."""
    from fedlearn.privacy.guarantee import rounded_up

    target, rounds = config.privacy.target_epsilon, config.run.rounds
    with _progress() as shown:
        features = shown.add_task("features", total=None, visible=False, state="")
        task = shown.add_task("round", total=rounds, state="")

        def on_round(result: "RoundResult") -> None:
            accuracy = "not evaluated" if result.accuracy is None else f"accuracy {percent(result.accuracy)}"
            spent = (
                "NOT PRIVATE"
                if result.epsilon is None
                else f"epsilon {rounded_up(result.epsilon, 2):.2f} of {target:g}"
            )
            shown.update(task, completed=result.round, state=f"{accuracy}, {spent}")

        def on_features(done: int, total: int) -> None:
            shown.update(features, completed=done, total=total, visible=done < total)

        yield on_round, on_features


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """How many of `what` are done, and the time left; gives progress(done, total)."""
    with _progress() as shown:
        task = shown.add_task(what, total=None, state="")
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _progress() -> Progress:
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
