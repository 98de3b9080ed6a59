"""What a mistyped name is answered with: the known name most like it, and how they differ where that is hard to see."""

import time
from pathlib import Path

import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.data import load_dataset
from fedlearn.errors import ConfigError
from fedlearn.round.source import data_options
from fedlearn.wording import did_you_mean, nearest

COMPOSED, APART = "\u00e9tat", "e\u0301tat"
CASE = "which differs only in upper and lower case?"
ACCENTS = "which differs only in how accents are joined to their letters (Unicode)?"
BOTH = "which differs only in upper and lower case, and how accents are joined to their letters (Unicode)?"


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("Age", "age", f"did you mean age, {CASE}"),
        ("STRASSE", "straße", f"did you mean straße, {CASE}"),
        (APART, COMPOSED, f"did you mean {COMPOSED}, {ACCENTS}"),
        (COMPOSED, APART, f"did you mean {APART}, {ACCENTS}"),
        (COMPOSED.upper(), APART, f"did you mean {APART}, {BOTH}"),
        ("zzz", "age", ""),
        ("agee", "age", "did you mean age?"),
        ("X" * 200, "x" * 200, f"did you mean {'x' * 200}, {CASE}"),
    ],
)
def test_case_and_composition_count_for_nothing_and_are_told(name: str, known: str, sentence: str) -> None:
    assert did_you_mean(name, ["weight", known]) == sentence


def test_a_name_that_is_there_is_the_nearest_to_itself() -> None:
    assert nearest("Age", ["age", "Age"]) == "Age"


def test_among_very_many_names_an_equal_one_is_found_and_nothing_takes_long() -> None:
    names = [f"p{number}" for number in range(20_000)]
    began = time.process_time()
    assert nearest("P17", names) == "p17"
    assert nearest("p20000", names) is None
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        (f"Age,{COMPOSED},ill", ("has no column 'age'; the section", f"did you mean Age, {CASE}")),
        (f"age,{APART},ill", (f"has no column '{COMPOSED}'; the section", f"did you mean {APART}, {ACCENTS}")),
        (f"age,{COMPOSED},Ill", ("has no column 'ill', which data.label names", f"; did you mean Ill, {CASE}")),
    ],
)
def test_a_column_of_a_file_that_is_spelled_otherwise_is_named(
    tmp_path: Path, header: str, parts: tuple[str, str]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"{header}\n1,2,0\n", encoding="utf-8")
    bounds = {"low": 0.0, "high": 9.0}
    told = {"dataset": "csv", "path": str(file), "label": "ill", "classes": [["0"], ["1"]]}
    config = RunConfig.load(
        "digits", {"data.columns": {"age": bounds, COMPOSED: bounds}, **{f"data.{key}": told[key] for key in told}}
    )
    with pytest.raises(ConfigError) as refused:
        load_dataset(data_options(config))
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("privacy.Mode=none", f"privacy.Mode is not a key of a run; did you mean privacy.mode, {CASE}"),
        ("privacy.Rounds=3", f"privacy.Rounds is not a key of a run; did you mean run.rounds, {CASE}"),
        ("model.name=Linear", f"did you mean linear, {CASE}"),
    ],
)
def test_a_key_or_name_of_a_run_in_other_case_is_named(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RunConfig.load("digits", [override])
    assert sentence in str(refused.value)
