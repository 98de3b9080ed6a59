"""The Python interface: load, plan, simulate, resume, load_model."""

import csv
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import fedlearn
from fedlearn.certificate.verify import verify_certificate
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.run.checkpoint import RunFolder
from fedlearn.simulation.run import resume

OWN_RUN = """
[run]
rounds = 6
spare_rounds = 1

[data]
dataset = "csv"
path = "patients.csv"
public_test = 0.2
public = true
label = "ill"
classes = [["no"], ["yes"]]
population_size = 5

[data.columns.age]
low = 0
high = 100

[data.columns.sex]
values = ["f", "m"]

[model]
name = "study_models:two_layers"
options = { width = 4 }

[training]
learning_rate = 4.0
strategy = "FedAvg"

[privacy]
mode = "record-distributed"
target_epsilon = 5.0
delta = 1e-4
max_grad_norm = 0.5
clipping_norm = 40.0
sampling_probability = "1"
planned_records = 400
max_participations = 7

[secure_aggregation]
masking = false
cohorts = "rotation"
planned_cohort = 5
min_survivors = 4
max_colluders = 1
scale_bits = 16
"""

OWN_MODEL = """
from torch import nn

def two_layers(*, input_shape, classes, width):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, classes))
"""


@pytest.fixture
def own_run(tmp_path):
    """A folder as a user has it: a table, a model of their own, a TOML file."""
    folder = tmp_path / "study"
    folder.mkdir()
    generator = np.random.default_rng(1)
    with (folder / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "sex", "ill"])
        for age in generator.integers(20, 90, 500):
            writer.writerow([age, generator.choice(["f", "m"]), "yes" if age > 55 else "no"])
    (folder / "study_models.py").write_text(OWN_MODEL)
    (folder / "study.toml").write_text(OWN_RUN)
    return folder


def test_own_table_and_own_model_run_privately_and_the_model_loads(own_run, tmp_path):
    config = fedlearn.RunConfig.load(own_run / "study.toml")
    result = fedlearn.simulate(config, output=tmp_path / "run")
    assert result.private
    assert result.guarantees[0].epsilon <= 5
    (own_run / "patients.csv").unlink()  # what was learned outlives the records
    model = fedlearn.load_model(tmp_path / "run")
    assert not model.module.training
    assert model.preprocess({"age": [30, 80], "sex": ["f", "m"]}).shape == (2, 3)
    assert model.predict({"age": [25, 85], "sex": ["f", "m"]}) == ["no", "yes"]
    assert fedlearn.load_model(tmp_path / "run" / "model.safetensors").predict([{"age": 85, "sex": "f"}]) == ["yes"]


def test_on_round_sees_every_round_in_order(load_digits, tmp_path):
    seen = []
    fedlearn.simulate(load_digits("run.rounds=3"), seen.append, output=tmp_path / "run")
    assert [result.round for result in seen] == [1, 2, 3]
    assert seen[0].epsilon < seen[1].epsilon < seen[2].epsilon


def test_plan_is_what_the_run_will_guarantee(load_digits, tmp_path):
    config = load_digits("run.rounds=3", "run.spare_rounds=0", "privacy.max_participations=3")
    planned = fedlearn.plan(config)
    result = fedlearn.simulate(config, output=tmp_path / "run")
    assert planned.guarantee == result.guarantees[0]
    assert planned.guarantee.epsilon <= config.privacy.target_epsilon


def test_an_interrupted_run_goes_on_and_counts_what_was_released(load_digits, tmp_path):
    config = load_digits("run.rounds=5", "run.spare_rounds=2")

    def stop_after_two(result):
        if result.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedlearn.simulate(config, stop_after_two, output=tmp_path / "run")
    result = resume(tmp_path / "run")
    assert result.rounds == 5
    lines = RunFolder(tmp_path / "run").lines("metrics.jsonl")
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]
    assert len(RunFolder(tmp_path / "run").lines("events.jsonl")) == 5


def test_an_attempt_that_a_crash_interrupted_is_spent_and_uses_a_spare_round(load_digits, tmp_path):
    config = load_digits("run.rounds=3", "run.spare_rounds=2")
    folder = RunFolder(tmp_path / "run")

    def crash(self, name, line):
        raise OSError("power cut")

    patch = pytest.MonkeyPatch()
    patch.setattr(RunFolder, "append", crash)  # the process dies after the vectors were asked for
    with pytest.raises(OSError, match="power cut"):
        fedlearn.simulate(config, output=folder.path)
    patch.undo()
    result = resume(folder.path)
    events = folder.lines("events.jsonl")
    assert [(line["round"], line["attempt"], line["aborted"]) for line in events] == [
        (1, 0, True),
        (1, 1, False),
        (2, 0, False),
        (3, 0, False),
    ]
    whole = fedlearn.simulate(config, output=tmp_path / "whole")
    assert result.guarantees[0].epsilon > whole.guarantees[0].epsilon


def test_a_sum_that_was_booked_and_lost_in_a_crash_counts_and_is_not_the_rounds(load_digits, tmp_path, monkeypatch):
    folder, append = RunFolder(tmp_path / "run"), RunFolder.append

    def crash(self, name, line):
        if name == "metrics.jsonl":
            raise OSError("power cut")
        append(self, name, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", crash)  # the process dies after the sum is booked
        with pytest.raises(OSError, match="power cut"):
            fedlearn.simulate(load_digits("run.rounds=2", "run.spare_rounds=2"), output=folder.path)
    assert not folder.lines("events.jsonl")[0]["aborted"]
    resume(folder.path)
    events = [(line["round"], line["attempt"], line["aborted"]) for line in folder.lines("events.jsonl")]
    assert events == [(1, 0, True), (1, 1, False), (2, 0, False)]
    certificate, model = (folder.file(name).read_bytes() for name in ("certificate.json", "model.safetensors"))
    assert verify_certificate(certificate, model).passed


def test_a_finished_run_resumes_to_the_same_result(load_digits, tmp_path):
    first = fedlearn.simulate(load_digits("run.rounds=2"), output=tmp_path / "run")
    again = resume(tmp_path / "run")
    assert (again.accuracy, again.rounds, again.guarantees) == (first.accuracy, first.rounds, first.guarantees)


def test_the_run_folders_config_is_a_run_of_its_own(load_digits, tmp_path):
    config = load_digits("run.rounds=2", "privacy.target_epsilon=2.5")
    fedlearn.simulate(config, output=tmp_path / "run")
    assert fedlearn.RunConfig.load(tmp_path / "run" / "config.toml").to_bytes() == config.to_bytes()
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["privacy"]["target_epsilon"] == 2.5


def test_resume_and_load_model_say_what_a_folder_lacks(tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        resume(tmp_path)
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        fedlearn.load_model(tmp_path)


def test_two_processes_never_work_on_one_run(load_digits, tmp_path):
    fedlearn.simulate(load_digits("run.rounds=1"), output=tmp_path / "run")
    holds = (
        "import sys, time; from pathlib import Path; from fedlearn.run.checkpoint import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", holds, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        with pytest.raises(ConfigError, match="another process works on this run; wait until it has ended"):
            resume(tmp_path / "run")
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
        other.kill()
    assert resume(tmp_path / "run").rounds == 1, "the lock of a process that was killed is free"


def test_a_damaged_checkpoint_is_one_sentence(load_digits, tmp_path):
    fedlearn.simulate(load_digits("run.rounds=1"), output=tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="damaged"):
        resume(tmp_path / "run")


def test_without_enough_clients_the_run_fails_with_its_folder_intact(load_digits, tmp_path):
    # Who fails where is drawn at random: one run in 25 ends because no attempt comes as far as the vectors.
    with pytest.raises(RunFailedError, match=r"no spare round is left|before a vector was asked for"):
        fedlearn.simulate(load_digits("run.rounds=2", "runtime.dropout=0.6"), output=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.file("config.toml").is_file()
    stored = folder.load_checkpoint()
    assert stored is not None
    assert stored[0].attempts_asked == len(folder.lines("events.jsonl")) <= 3


def test_a_line_that_a_crash_left_unfinished_does_not_spoil_the_next_one(load_digits, tmp_path):
    config = load_digits("run.rounds=3", "run.spare_rounds=2")

    def stop_after_one(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedlearn.simulate(config, stop_after_one, output=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for name in ("events.jsonl", "metrics.jsonl"):
        with folder.file(name).open("a") as file:
            file.write('{"round": 2, "att')
    assert resume(folder.path).rounds == 3
    assert [line["round"] for line in folder.lines("events.jsonl")] == [1, 2, 3]
