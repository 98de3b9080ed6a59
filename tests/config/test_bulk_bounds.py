"""Bounds for many columns at once: a section of `data.columns` that is named by a pattern."""

import json
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.config.schema import schema_sha256
from fedlearn.data import load_dataset
from fedlearn.errors import ConfigError
from fedlearn.round.source import data_options
from fedlearn.simulation.run import plan

WIDE = {"low": 0.0, "high": 10.0}
NARROW = {"low": 0.0, "high": 1.0}


def run_of(columns: dict[str, Any], features: list[str] | None = None, **data: object) -> RunConfig:
    told = {"data.columns": columns, "data.dataset": "csv", "data.label": "ill", "data.classes": [["0"], ["1"]], **data}
    return RunConfig.load("digits", told if features is None else {**told, "data.features": features})


def bounds(config: RunConfig) -> dict[str, float | None]:
    return {name: column.high for name, column in config.data.columns.items()}


def test_a_pattern_gives_bounds_to_every_listed_column_that_has_none_of_its_own() -> None:
    config = run_of({"p*": WIDE, "p2": NARROW, "age": NARROW}, ["p1", "p2", "p3"])
    assert bounds(config) == {"p1": 10.0, "p2": 1.0, "p3": 10.0, "age": 1.0}


def test_what_is_agreed_on_is_the_same_as_if_each_column_had_its_section() -> None:
    short, long = run_of({"p*": WIDE}, ["p1", "p2"]), run_of({"p2": WIDE, "p1": WIDE})
    assert short.to_bytes() == long.to_bytes()
    assert schema_sha256(short.data) == schema_sha256(long.data)


def test_the_file_of_a_run_folder_means_the_same_run() -> None:
    config = run_of({"p*": WIDE, "dose [mg]": NARROW, "A*02": NARROW}, ["p1", "p2", "dose [mg]", "A*02"])
    assert bounds(config) == {"p1": 10.0, "p2": 10.0, "dose [mg]": 1.0, "A*02": 1.0}
    again = RunConfig.from_values(tomllib.loads(config.to_toml()), place="the copy")
    assert again.data == config.data
    assert again.to_bytes() == config.to_bytes()


def test_names_with_signs_of_a_pattern_are_names_where_none_are_listed_and_in_what_is_received() -> None:
    assert bounds(run_of({"dose [mg]": WIDE, "smoker?": NARROW})) == {"dose [mg]": 10.0, "smoker?": 1.0}
    config = run_of({"A*02": NARROW}, ["A*02"])
    assert bounds(RunConfig.from_bytes(config.to_bytes())) == {"A*02": 1.0}


@pytest.mark.parametrize(
    ("columns", "features", "sentence"),
    [
        ({"p*": WIDE}, None, r'data.columns has the pattern "p\*", and nothing says which columns there are; list'),
        ({"p*": WIDE, "*1": NARROW}, ["p1", "p2"], r'the patterns "p\*" and "\*1" of data.columns both match "p1"'),
        ({"q*": WIDE, "p1": NARROW}, ["p1"], r'the pattern "q\*" of data.columns matches none of data.features'),
        ({"p*": WIDE, "p1": NARROW}, ["p1"], r'the pattern "p\*" of data.columns matches none of data.features'),
        ({"p*": WIDE}, ["p1", "q1"], r'data.features names "q1", which no section of data.columns has bounds for'),
        ({"p*": WIDE}, ["p1", "p2", "p1"], r'data.features names "p1" twice'),
        ({f"p{at}*": WIDE for at in range(65)}, ["p1"], r"data.columns has 65 patterns; expected at most 64"),
        ({"p*": WIDE}, ["p1"] * 40_000, r"data.features has 40000 entries; expected at most 32768"),
    ],
)
def test_what_is_not_clear_is_refused_in_one_sentence(
    columns: dict[str, Any], features: list[str] | None, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=f"^digits: {sentence}") as refused:
        run_of(columns, features)
    assert len(str(refused.value)) < 300


def test_patterns_are_matched_with_what_the_run_says_and_not_with_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("p1,p2,p3,ill\n1,2,3,0\n4,5,6,1\n")
    with pytest.raises(ConfigError, match=r"has the column 'p3', which has no bounds"):
        load_dataset(data_options(run_of({"p*": WIDE}, ["p1", "p2"], **{"data.path": str(file)})))
    train = load_dataset(data_options(run_of({"p*": WIDE}, ["p1", "p2", "p3"], **{"data.path": str(file)}))).train
    assert train.features.shape == (2, 3)


def test_a_holder_is_sent_no_patterns() -> None:
    values = json.loads(run_of({"p1": WIDE}).to_bytes())
    values["data"]["features"] = ["p1"]
    with pytest.raises(ConfigError, match="not in canonical form"):
        RunConfig.from_bytes(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.lengthy
@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_twenty_thousand_columns_are_loaded_planned_and_written_in_seconds(tmp_path: Path, short: bool) -> None:
    names = [f"p{at}" for at in range(20_000)]
    config = run_of({"p*": NARROW}, names)
    file = tmp_path / "run.toml"
    if short:
        without = config.model_copy(update={"data": config.data.model_copy(update={"columns": {}})})
        file.write_text(f'{without.to_toml()}\n[data.columns."p*"]\nlow = 0\nhigh = 1\n')
    else:
        file.write_text(config.to_toml())
    began = time.process_time()
    loaded = RunConfig.load(file)
    planned = plan(loaded)
    body = loaded.to_bytes()
    assert time.process_time() - began < 6, "1.4 s short, 2.2 s with 20,000 sections, of a core that others share"
    assert planned.dimension == 2 * 20_000 + 2
    assert body == config.to_bytes()
