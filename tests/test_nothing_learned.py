"""A run that cannot have learned anything says so, instead of ending with an accuracy and an epsilon."""

import json

import pytest

import fedlearn
from fedlearn.checkpoint import RunFolder
from fedlearn.config import RunConfig
from fedlearn.errors import ConfigError, RunFailedError


@pytest.mark.parametrize("masking", ["true", "false"])
def test_a_model_that_is_not_finite_ends_the_run_and_is_never_certified(masking, tmp_path):
    settings = ["run.rounds=3", "training.learning_rate=1e45", f"secure_aggregation.masking={masking}"]
    config = RunConfig.load("digits", settings)
    with pytest.raises(RunFailedError, match="not finite") as failed:
        fedlearn.simulate(config, output=tmp_path / "run")
    assert failed.value.exit_code == 4
    assert "\n" not in str(failed.value)
    for name in ("certificate.json", "model.safetensors", "summary.json"):
        assert not (tmp_path / "run" / name).exists()
    assert len(RunFolder(tmp_path / "run").lines("events.jsonl")) == 1, "what was released counts"


def test_a_run_folder_takes_no_number_that_json_does_not_have(tmp_path):
    folder = RunFolder(tmp_path)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            folder.write_json("summary.json", {"loss": value})
        with pytest.raises(ValueError, match="JSON"):
            folder.append("metrics.jsonl", {"loss": value})
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_is_null(tmp_path):
    """Weights of 1e38 are finite, what they give is not: the run ends well and no JSON of it says NaN."""
    config = RunConfig.load(
        "digits", ["run.rounds=2", "training.learning_rate=1e37", "secure_aggregation.masking=false"]
    )
    fedlearn.simulate(config, output=tmp_path / "run")

    def refuse(constant):
        raise AssertionError(constant)

    for name in ("summary.json", "certificate.json"):
        json.loads((tmp_path / "run" / name).read_text(), parse_constant=refuse)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_run_over_no_records_is_one_sentence(tmp_path):
    (tmp_path / "empty.csv").write_text("age,ill\n")
    values = RunConfig.load("digits").model_dump(exclude_none=True)
    values["data"] |= {"dataset": "csv", "path": str(tmp_path / "empty.csv"), "label": "ill"}
    values["data"] |= {"classes": [["no"], ["yes"]], "columns": {"age": {"low": 0, "high": 100}}}
    values["model"] = {"name": "linear"}
    config = RunConfig.from_values(values, place="test")
    with pytest.raises(ConfigError, match="no record"):
        fedlearn.simulate(config, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
