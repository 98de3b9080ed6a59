"""`report.html`: one file that needs no network, no script and no other file."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedlearn.errors import ConfigError
from fedlearn.host.durable import write_whole
from fedlearn.privacy.accounting import Event
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.report.audit_section import AuditCard, audit_cards, empirical_audit
from fedlearn.report.disclosures import disclosures
from fedlearn.report.figures import delta_text, epsilon_text, percent, plain
from fedlearn.report.plots import Curve, draw_curve
from fedlearn.report.registry import registry_entries
from fedlearn.report.replacement import epsilon_if_replaced
from fedlearn.report.run_folder import RunFolder, Summary
from fedlearn.report.statement import privacy_statement

__all__ = ["REGISTRY_FILE", "draw_report", "write_failed_page", "write_report"]

REGISTRY_FILE = "registry.json"


def write_report(run_folder: Path) -> Path:
    """Draw `report.html` and `registry.json` into the run folder from its other files; returns the page's path.

    Guarantees: nothing is drawn of a certificate that `fedlearn verify` refuses; the page loads nothing from anywhere;
    text from the run is inert; the same files give the same bytes; an older page is replaced as a whole or not at all.

    Raises:
        ConfigError: a file of the run is missing, damaged or contradicts another, or a check of the certificate fails;
            nothing was written.
    """
    run = RunFolder.read(run_folder)
    run.certified.refuse_unverified(run_folder, run.config)
    return draw_report(run_folder, run)


def draw_report(run_folder: Path, run: RunFolder) -> Path:
    """The same, of a run whose certificate was verified: only its form and signature were seen here.

    Raises:
        ConfigError: `audit.json` is damaged, or the page cannot be written.
    """
    page = _rendered(run, audit_cards(run_folder, run.config))
    entries = json.dumps(registry_entries(run.certified), indent=2, sort_keys=True, allow_nan=False) + "\n"
    return _write(run_folder, page, {REGISTRY_FILE: entries.encode("ascii")})


def write_failed_page(run_folder: Path, *, name: str, reason: str) -> None:
    """Write the `report.html` of a deployed run that failed: its name, the reason, and that no guarantee is stated.

    Raises:
        ConfigError: it cannot be written.
    """
    page = _environment().get_template("failed.html.j2").render(name=name, reason=reason)
    _write(run_folder, page, {})


def _write(run_folder: Path, page: str, beside: Mapping[str, bytes]) -> Path:
    """Write `report.html` after the files `beside` it; names that are no text are written as escapes."""
    target = run_folder / "report.html"
    try:
        for name, content in {**beside, target.name: page.encode("utf-8", "backslashreplace")}.items():
            write_whole(run_folder / name, content, mode=0o644)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}; check the folder's permissions") from None
    return target


def _rendered(run: RunFolder, audits: tuple[AuditCard, ...]) -> str:
    page = _environment().get_template("page.html.j2")
    summary = run.summary
    return page.render(
        run=run,
        summary=summary,
        period=_period(summary),
        mode_text=MECHANISMS[run.certified.mode].sentence,
        statement=privacy_statement(run.certified, replaced=_replaced(run)),
        disclosures=disclosures(run.certified, audit=empirical_audit(audits)),
        certificate=run.certified.content,
        audits=audits,
        curves=_curves(run),
        confusion=_shares(summary),
        settings=_settings(run),
        policy=_flat(summary.policy) if run.certified.simulated else {},
        clients=run.config.data.population_size or summary.plan.planned_cohort,
    )


def _replaced(run: RunFolder) -> list[float | None]:
    booked = [line.event.model_dump() for line in run.attempts if line.event is not None and run.certified.private]
    try:
        events = [Event.from_dict(values) for values in booked]
    except ConfigError as error:
        raise ConfigError(f"events.jsonl: {error}") from None
    return [epsilon_if_replaced(item, events, run.summary.releases) for item in run.certified.guarantees]


def _period(summary: Summary) -> str:
    """When the run took place, in the clock of the run: "2026-11-25 03:20:00 UTC, for 4 s"."""
    try:
        start, end = (datetime.fromisoformat(text) for text in (summary.started, summary.ended))
        seconds = (end - start).total_seconds()
    except (ValueError, TypeError):
        return f"{summary.started} to {summary.ended}"
    zone = start.strftime(" %Z") if start.tzinfo else ""
    return f"{start:%Y-%m-%d %H:%M:%S}{zone}, for {_duration(seconds)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s" if not hours else ""]
    return " ".join(part for part in parts if part)


def _environment() -> Environment:
    # Names of classes, columns and scenarios come from others: autoescape is on for everything, and nothing is `safe`.
    environment = Environment(
        loader=PackageLoader("fedlearn.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(epsilon=epsilon_text, delta=delta_text, percent=percent, plain=plain)
    return environment


def _curves(run: RunFolder) -> list[Curve]:
    """Accuracy, loss and epsilon spent; a curve without a single value is left out."""
    private, rounds, scored = run.summary.private, run.rounds, "public held-out data"
    accuracies = [(line.round, line.accuracy) for line in rounds]
    losses = [(line.round, line.loss) for line in rounds]
    epsilons = [(line.round, line.epsilon) for line in rounds if private]
    drawn = (
        draw_curve("Accuracy", accuracies, note=scored, text=percent, highest=1.0),
        draw_curve("Loss", losses, note=scored, text=_three_digits),
        draw_curve(
            "Epsilon spent",
            epsilons,
            note=next(
                (f"one {item.privacy_unit}, delta {delta_text(item.delta)}" for item in run.certified.guarantees), ""
            ),
            text=epsilon_text,
            limit=run.config.privacy.target_epsilon,
            from_zero=True,
        ),
    )
    return [curve for curve in drawn if curve is not None]


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


def _shares(summary: Summary) -> list[list[tuple[int, float]]]:
    """The confusion matrix as (count, share of its row)."""
    return [[(count, round(count / max(sum(row), 1), 4)) for count in row] for row in summary.confusion]


def _settings(run: RunFolder) -> dict[str, dict[str, str]]:
    sections = run.config.model_dump(exclude_none=True)
    return {name: _flat(values) for name, values in sections.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables as dotted keys, values as text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = plain(value)
    return flat
