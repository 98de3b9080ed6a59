"""The records behind each [dataset.ID], read as a run would read them. What is said of them is for the holder alone."""

from pathlib import Path
from typing import Final

from fedlearn.agent.source import Source
from fedlearn.config import RunConfig
from fedlearn.data.tables import read_table, refused_rows
from fedlearn.deployment.doctor.check import Check, error, ok
from fedlearn.errors import ConfigError, DataError
from fedlearn.holder_policy import HolderPolicy

__all__ = ["records_line"]

_ROWS_NAMED: Final = 20
_REMEDY: Final = "correct these rows, or agree with the coordinator on a schema that fits them"


def records_line(policy: HolderPolicy, dataset_id: str, run: Path | None) -> Check:
    """Of one data set: that it can be read, and with a run that every row fits its schema; refused rows are named."""
    name = f"records of {dataset_id}"
    source = Source.of(policy, dataset_id)
    config = RunConfig.load(run) if run else None
    meant = config is not None and config.data.dataset == source.kind
    if source.path is not None and not source.path.is_file():
        return error(name, f"{source.path}: no such file", f"put it there, or correct dataset.{dataset_id}.source")
    try:
        if meant:
            assert config is not None
            return ok(name, f"{len(source.records(config))} records fit the schema of {run}")
        if source.path is None:
            return ok(name, f"{source.kind}, which ships with fedlearn")
        table = read_table(source.kind, source.path)
    except DataError as problem:
        return error(name, str(problem) + _other_rows(source, config if meant else None), _REMEDY)
    except ConfigError as problem:
        return error(name, str(problem), "correct the run's [data], or the policy's dataset." + dataset_id)
    rows = len(next(iter(table.columns.values())))
    judged = f"{run} is about other data" if run else "name a run to have them read by its schema"
    return ok(name, f"{source.path}: {rows} rows, {len(table.columns)} columns; {judged}")


def _other_rows(source: Source, config: RunConfig | None) -> str:
    """Which other rows would be refused, as the end of a sentence about the first."""
    if config is None:
        return ""
    try:
        rows = refused_rows(source.options(config), most=_ROWS_NAMED + 1)
    except ConfigError:
        return ""
    if len(rows) < 2:
        return ""
    more = " and more" if rows[_ROWS_NAMED:] else ""
    return f"; refused are rows {', '.join(map(str, rows[:_ROWS_NAMED]))}{more}"
