"""A run that cannot have learned anything says so, instead of ending with an accuracy and an epsilon."""

import json

import pytest
import torch
from torch import nn

import fedlearn
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.run.checkpoint import RunFolder
from fedlearn.simulation.run import resume


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


class Picky(nn.Module):
    """Raises on the records of clients; a model is checked with other ones."""

    def __init__(self, share):
        super().__init__()
        self.layer, self.share = nn.Linear(64, 10), share

    def forward(self, inputs):
        rows = inputs.flatten(1)
        grid = (rows + 0.3) * 16  # digits are whole numbers from 0 to 16
        real = bool(torch.isclose(grid, torch.round(grid), atol=1e-3).all())
        if real and self.training and float(grid.sum() % 64) <= self.share * 64:
            raise ValueError("not these records")
        return self.layer(rows)


def picky(*, input_shape, classes, share=1.0):
    return Picky(share)


PER_MODE = {
    "none": ["training.local_steps=1", "training.batch_size=4"],
    "record-distributed": [],
    "record-local": ["training.local_steps=1", "privacy.target_epsilon=8"],
}


def _picky(mode, *settings):
    named = [f"model.name={__name__}:picky", f"privacy.mode={mode}", "run.rounds=2"]
    return RunConfig.load("digits", [*named, *PER_MODE[mode], *settings])


@pytest.mark.parametrize("mode", PER_MODE)
def test_a_run_in_which_no_client_could_train_ends_with_the_reason(mode, tmp_path):
    config = _picky(mode, f"secure_aggregation.masking={'true' if mode == 'record-distributed' else 'false'}")
    with pytest.raises(RunFailedError, match="no client could train: local work failed 20 of 20 times") as failed:
        fedlearn.simulate(config, output=tmp_path / "run")
    assert failed.value.exit_code == 4
    assert "ValueError: not these records (test_nothing_learned.py" in str(failed.value) or mode != "none"
    for name in ("certificate.json", "summary.json", "model.safetensors"):
        assert not (tmp_path / "run" / name).exists()
    with pytest.raises(RunFailedError, match="no client could train"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(("masking", "workers"), [("true", 2), ("false", 2), ("false", 1)])
def test_failures_of_some_clients_are_counted_and_said(masking, workers, tmp_path, capfd):
    settings = [f"secure_aggregation.masking={masking}", f"runtime.workers={workers}", "model.options.share=0.3"]
    result = fedlearn.simulate(_picky("none", *settings), output=tmp_path / "run")
    assert result.local_work.clients == 20
    assert 0 < result.local_work.failed < 20
    said = f"Local work failed {result.local_work.failed} of 20 times"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["local_work"]["failed"] == result.local_work.failed
    assert said in (tmp_path / "run" / "report.html").read_text()
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_without_failures_says_nothing_of_them(tmp_path):
    config = RunConfig.load("digits", ["run.rounds=1", "secure_aggregation.masking=false"])
    result = fedlearn.simulate(config, output=tmp_path / "run")
    assert (result.local_work.clients, result.local_work.failed, result.local_work.sentence) == (10, 0, None)
