"""A finished model stands alone: no record, no run folder, no data set is needed to use it."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fedlearn
from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.public_data import PublicData
from fedlearn.errors import ConfigError
from fedlearn.model.builders import build_model
from fedlearn.model.vector import layout_of
from fedlearn.round.source import Source, model_dimension, start_model
from fedlearn.run.trained import model_file

COLUMNS = {"age": {"low": 0, "high": 100}, "sex": {"values": ["f", "m"]}}


@pytest.fixture
def table_run(load_digits):
    """The configuration of a table run as a holder gets it: without any path."""
    table = {
        "data.dataset": "csv",
        "data.label": "ill",
        "data.classes": [["no"], ["yes", "very"]],
        "data.columns": COLUMNS,
        "data.public_test": "test.csv",
        "model.name": "linear",
    }
    values = load_digits().model_dump(exclude_none=True)
    for key, value in table.items():
        section, name = key.split(".")
        values[section][name] = value
    return RunConfig.from_bytes(RunConfig.from_values(values, place="test").to_bytes())


@pytest.fixture
def table_model(table_run, tmp_path):
    """The file that coordinator and holders of a deployed table run have: the older one is, the iller."""
    data = PublicData.load(table_run, population_size=10)
    layout = layout_of(data.build_model(table_run))
    # features age, sex=f, sex=m; (class, feature), then biases
    weights = np.array([-9.0, 0, 0, 9, 0, 0, 0, 0])
    content = model_file(weights, layout, table_run, input_shape=data.input_shape, classes=data.classes)
    holder = Source("csv", tmp_path / "no such.csv").blank(table_run)
    assert content == model_file(
        weights, layout, table_run, input_shape=holder.input_shape, classes=holder.task.classes
    ), "the holder's copy is byte for byte the coordinator's"
    path = tmp_path / "copy.safetensors"
    path.write_bytes(content)
    return fedlearn.load_model(path)


def test_a_table_is_predicted_in_every_form(table_model, tmp_path):
    expected = ["no", "yes/very"]
    assert table_model.predict({"age": [20, 90], "sex": ["f", "m"], "unused": [1, 2]}) == expected
    assert table_model.predict([{"sex": "f", "age": 20}, {"sex": "m", "age": "90"}]) == expected
    with (tmp_path / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["sex", "age", "name"], ["f", 20, "A"], ["m", 90, "B"]])
    assert table_model.predict(tmp_path / "new.csv") == expected
    assert table_model.predict(str(tmp_path / "new.csv")) == expected
    assert table_model.predict([]) == []


def test_a_data_frame_is_predicted(table_model):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [20, 90], "sex": ["f", "m"]})
    assert table_model.predict(frame) == ["no", "yes/very"]


def test_probabilities_are_rows_that_sum_to_one(table_model):
    told = table_model.predict_proba({"age": [0, 50, 100], "sex": ["f", "f", "f"]})
    assert told.shape == (3, 2)
    np.testing.assert_allclose(told.sum(axis=1), 1)
    np.testing.assert_allclose(told[:, 1], 1 / (1 + np.exp(-18 * np.array([-1.0, 0, 1]))), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"age": [20]}, "sex"),
        ({"age": ["old"], "sex": ["f"]}, "age"),
        (np.zeros((1, 3)), "expected a table"),
        ([[1, 2, 3]], "expected a table"),
        ("nowhere.csv", "nowhere.csv"),
        (7, "expected a table"),
    ],
)
def test_rows_that_do_not_fit_a_table_are_one_sentence(table_model, rows, said):
    with pytest.raises(ConfigError, match=said):
        table_model.predict(rows)


def test_pictures_are_predicted_from_arrays_where_the_data_set_is_not_installed(load_digits, tmp_path, monkeypatch):
    result = fedlearn.simulate(load_digits("run.rounds=10"), output=tmp_path / "run")
    config = RunConfig.load(tmp_path / "run" / "config.toml")
    test = PublicData.load(config, population_size=10).test
    monkeypatch.setattr("fedlearn.data.DATASETS", {})
    model = fedlearn.load_model(result.run_dir)
    told = model.predict(test.features)
    right = np.mean([name == test.task.classes[label] for name, label in zip(told, test.labels, strict=True)])
    assert right == result.accuracy
    for rows in (test.features[0], test.features[:, :, :4], "digits", {"age": [1]}, [["a"]], 3):
        with pytest.raises(ConfigError, match=r"expected an array"):
            model.predict(rows)


def test_a_frozen_layer_is_what_it_was_in_training(tmp_path, monkeypatch, table_run):
    (tmp_path / "frozen_study.py").write_text(
        "from torch import nn\n\ndef build(*, input_shape, classes):\n"
        "    first = nn.Linear(input_shape[0], 4).requires_grad_(False)\n"
        "    return nn.Sequential(first, nn.Linear(4, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    config = table_run.model_copy(update={"model": table_run.model.model_copy(update={"name": "frozen_study:build"})})
    like = Source("csv", tmp_path / "x.csv").blank(config)
    trained = start_model(config, like, search=[tmp_path])
    weights = np.linspace(-1, 1, model_dimension(config, like, search=[tmp_path]))
    layout = layout_of(trained)
    content = model_file(weights, layout, config, input_shape=like.input_shape, classes=like.task.classes)
    (tmp_path / "m.safetensors").write_bytes(content)
    loaded = fedlearn.load_model("m.safetensors").module
    np.testing.assert_array_equal(loaded[0].weight.numpy(), trained[0].weight.numpy())


def test_a_model_whose_builder_is_not_there_says_where_to_put_it(tmp_path, table_run):
    config = table_run.model_copy(update={"model": table_run.model.model_copy(update={"name": "no_such_study:build"})})
    layout = layout_of(start_model(table_run, Source("csv", tmp_path / "x").blank(table_run), search=[]))
    content = model_file(np.zeros(8), layout, config, input_shape=(3,), classes=("no", "yes"))
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match='there is no module "no_such_study"') as refusal:
        fedlearn.load_model(tmp_path / "m.safetensors")
    assert "\n" not in str(refusal.value)


def test_files_that_are_no_model_of_ours_are_one_sentence(table_model, tmp_path):
    path = tmp_path / "copy.safetensors"
    tensors = load_file(path)
    about = {"format": "fedlearn/v1/model", "data": {"dataset": "csv"}, "model": {"name": "linear"}, "seed": 0}
    for metadata in (
        None,
        {"fedlearn": "{"},
        {"fedlearn": "[]"},
        {"fedlearn": json.dumps({"format": "fedlearn/v1/model"})},
        {"fedlearn": json.dumps({**about, "input_shape": [3], "classes": [1]}, sort_keys=True, separators=(",", ":"))},
        {"fedlearn": json.dumps({**about, "input_shape": [-3], "classes": []}, sort_keys=True, separators=(",", ":"))},
        {"fedlearn": "[" * 100_000},
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(ConfigError, match="says not which model it is"):
            fedlearn.load_model(path)
    with pytest.raises(ConfigError, match=r"no absent\.safetensors"):
        fedlearn.load_model(tmp_path / "absent.safetensors")


@pytest.mark.slow
def test_a_model_of_20_000_columns_with_long_names_is_read_back_and_no_file_is_written_that_is_not(tmp_path):
    def file_of(columns, sign):
        schema = {f"{number:05d}{sign * 115}": {"low": 0.0, "high": 1.0} for number in range(columns)}
        table = {"dataset": "csv", "label": "y", "classes": [["0"], ["1"]], "columns": schema}
        config = RunConfig.load("digits", {f"data.{key}": value for key, value in table.items()})
        layout = layout_of(build_model("linear", input_shape=(columns,), classes=2, options={}, seed=0))
        return model_file(np.zeros(layout.dimension), layout, config, input_shape=[columns], classes=["0", "1"])

    (tmp_path / "model.safetensors").write_bytes(file_of(20_000, "n"))
    assert len(fedlearn.load_model(tmp_path / "model.safetensors").columns) == 20_000
    with pytest.raises(ConfigError, match=r"the model's description has \d+ bytes"):
        file_of(20_000, "\N{GRINNING FACE}")
