"""The records behind each [dataset.ID], read as a run would read them. What is said of them is for the holder alone."""

from pathlib import Path
from typing import Final

from fedlearn.config.run_config import RunConfig
from fedlearn.data.readers import Table, read_table
from fedlearn.deployment.doctor.check import Check, error, ok, warning
from fedlearn.errors import ConfigError, DataError
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.round.source import Source, Unusable

__all__ = ["records_line"]

_REMEDY: Final = "correct these rows, or agree with the coordinator on a schema that fits them"
_CLIPPED_NAMED: Final = 5


def records_line(policy: HolderPolicy, dataset_id: str, run: Path | None) -> Check:
    """Of one data set: that it can be read, and with a run which rows its schema does not fit, and what is clipped."""
    name = f"records of {dataset_id}"
    source = Source.of(policy, dataset_id)
    config = RunConfig.load(run) if run else None
    meant = config is not None and config.data.dataset == source.kind
    if source.path is not None and not source.path.exists():
        return error(name, f"{source.path}: no such file", f"put it there, or correct dataset.{dataset_id}.source")
    try:
        if meant:
            assert config is not None
            records, unusable = source.loaded(config)
            return _judged(name, f"{len(records)} records fit the schema of {run}", unusable)
        if source.path is None:
            return ok(name, f"{source.kind}, which ships with fedlearn")
        table = read_table(source.kind, source.path)
    except DataError as problem:
        return error(name, str(problem), "correct the file, or agree with the coordinator on a schema that fits it")
    except ConfigError as problem:
        return error(name, str(problem), "correct the run's [data], or the policy's dataset." + dataset_id)
    judged = f"{run} is about other data" if run else "name a run to have them read by its schema"
    told = f"{source.path}: {table.size} rows, {len(table.columns)} columns; {judged}"
    return _judged(name, told, _broken(table))


def _broken(table: Table) -> Unusable:
    return Unusable(table.size, {f"{table.place}, row {row + 1}": why for row, why in table.broken.items()}, {})


def _judged(name: str, told: str, unusable: Unusable) -> Check:
    usable = unusable.rows - len(unusable.reasons)
    shares = [
        f"{column} {100 * count / usable:.1f} %"
        for column, count in sorted(unusable.clipped.items(), key=lambda item: -item[1])
        if count
    ]
    if shares:
        more = ", ..." if shares[_CLIPPED_NAMED:] else ""
        told += f"; values beyond their bounds, which are clipped: {', '.join(shares[:_CLIPPED_NAMED])}{more}"
    if not unusable.reasons:
        return ok(name, told)
    first, why = next(iter(unusable.reasons.items()))
    return warning(name, f"{told}; {unusable.sentence}; the first: {first}, {why}", _REMEDY)
