"""Models by name, a user's own included, and the sentence for each that cannot be built."""

import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.model.builders import build_model, model_features
from fedlearn.model.vector import layout_of, read_parameters
from fedlearn.task.classification import Classification

OWN = """
import argparse
import sys
from torch import nn
from own_layers_NAME import width

def small(*, input_shape, classes, hidden=width):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, hidden), nn.Linear(hidden, classes))

def any_option(*, input_shape, classes, **options):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, options["wide"]))

def nothing(*, input_shape, classes):
    return None

def parsing(*, input_shape, classes):
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=5)
    return small(input_shape=input_shape, classes=classes, hidden=parser.parse_args().hidden)

def leaving(*, input_shape, classes):
    sys.exit(3)

def frozen(*, input_shape, classes):
    return nn.Linear(12, classes).requires_grad_(False)

def empty(*, input_shape, classes):
    return nn.Flatten()

def lazy(*, input_shape, classes):
    return nn.LazyLinear(classes)

def failing(*, input_shape, classes):
    raise ValueError("no such\\nwidth")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The name of a module that lies in `tmp_path`, with a sibling that it imports; a new name for each test."""
    suffix = str(abs(hash(request.node.nodeid)))
    (tmp_path / f"own_{suffix}.py").write_text(OWN.replace("NAME", suffix))
    (tmp_path / f"own_layers_{suffix}.py").write_text("width = 7\n")
    return f"own_{suffix}"


def build(
    name: str, *, search: tuple[Path, ...] = (), shape: tuple[int, ...] = (1, 3, 4), **options: object
) -> nn.Module:
    return build_model(name, input_shape=shape, classes=3, options=options, seed=0, search=search)


def test_the_linear_model_starts_at_zero() -> None:
    weights = read_parameters(build("linear"))
    assert weights.shape == (39,)
    assert not weights.any()


def test_the_cnn_has_26010_parameters_at_ten_classes() -> None:
    model = build_model("cnn", input_shape=(1, 28, 28), classes=10, options={}, seed=0)
    assert layout_of(model).dimension == 26_010


def test_the_mlp_has_the_widths_that_are_asked_for() -> None:
    assert layout_of(build("mlp", hidden=[5, 4])).shapes == ((5, 12), (5,), (4, 5), (4,), (3, 4), (3,))


def test_a_models_own_builder_is_found_in_a_search_folder_with_what_it_imports(own: str, tmp_path: Path) -> None:
    before = list(sys.path)
    assert layout_of(build(f"{own}:small", search=(tmp_path / "none", tmp_path))).shapes[0] == (7, 12)
    assert layout_of(build(f"{own}:small", search=(tmp_path,), hidden=2)).shapes[0] == (2, 12)
    assert layout_of(build(f"{own}:any_option", search=(tmp_path,), wide=3)).shapes[0] == (3, 12)
    assert sys.path == before


def test_the_first_search_folder_wins(own: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    (first / f"{own}.py").write_text((tmp_path / f"{own}.py").read_text().replace("hidden, classes)", "hidden, 4)"))
    assert layout_of(build(f"{own}:small", search=(first, tmp_path))).shapes[-1] == (4,)


def test_a_builder_is_found_in_the_environment() -> None:
    with pytest.raises(ConfigError, match="whose builder failed: TypeError"):
        build("torch.nn:Linear", in_features=3, out_features=2)


def test_a_module_of_the_same_name_that_is_loaded_already_is_not_taken_for_the_wanted_one(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("")
    with pytest.raises(ConfigError, match=r'another module "pytest" is loaded already; give yours another name'):
        build("pytest:build", search=(tmp_path,))


REFUSED = [
    ("lineer", {}, 'model.name is "lineer"; expected one of linear, mlp, cnn, scatter-linear.*did you mean linear?'),
    ("OWN:missing", {}, '"missing" does not exist in .*; name a function'),
    ("OWN:number", {}, '"number" is not callable'),
    ("OWN:nothing", {}, "gave NoneType; expected an nn.Module"),
    ("OWN:empty", {}, "has no parameters; there is nothing to train"),
    ("OWN:lazy", {}, "parameter weight has no size yet; give its layer all sizes"),
    ("OWN:frozen", {}, "has no parameters but frozen ones; there is nothing to train"),
    ("OWN:failing", {}, "whose builder failed: ValueError: no such width"),
    ("OWN:leaving", {}, "whose builder failed: it ended the program .*; options come from model.options"),
    ("OWN:small", {"hiden": 3}, "model.options.hiden is not an option of the model .*; expected hidden"),
    (
        "no_such_package.models:build",
        {},
        'no module "no_such_package" in the folder of the TOML file, the working folder or the environment',
    ),
    ("torch.no_such_part:build", {}, 'no module "torch.no_such_part"'),
    ("torch nn:build", {}, 'expected a builder of your own as "package.module:builder"'),
    ("torch.nn:", {}, 'expected a builder of your own as "package.module:builder"'),
    ("linear", {"hidden": [3]}, 'model.options.hidden is not an option of the model "linear"; it takes none'),
    ("mlp", {"hidden": [3, 0]}, r"model.options.hidden is \[3, 0\]; expected a list of layer widths"),
    ("mlp", {"hidden": 3}, "model.options.hidden is 3; expected a list of layer widths"),
    ("cnn", {}, r"made for records of shape \(1, 28, 28\); this data set has \(1, 3, 4\)"),
]


@pytest.mark.parametrize(("name", "options", "sentence"), REFUSED)
def test_a_model_that_cannot_be_built_is_one_sentence(name, options, sentence, own: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        build(name.replace("OWN", own), search=(tmp_path,), **options)
    assert "\n" not in str(refusal.value)


def test_code_that_parses_the_command_line_finds_it_empty(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedlearn", "simulate", "run.toml"])
    assert layout_of(build(f"{own}:parsing", search=(tmp_path,))).shapes[0] == (5, 12)
    assert sys.argv == ["fedlearn", "simulate", "run.toml"]


def test_a_module_that_cannot_be_imported_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "own_broken.py").write_text("def build(:\n")
    (tmp_path / "own_script.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "own_needy.py").write_text("import no_such_library\n")
    with pytest.raises(ConfigError, match="importing own_broken failed: SyntaxError"):
        build("own_broken:build", search=(tmp_path,))
    with pytest.raises(ConfigError, match="importing own_script failed: it ended the program"):
        build("own_script:build", search=(tmp_path,))
    with pytest.raises(ConfigError, match=r"importing own_needy failed: ModuleNotFoundError: .*no_such_library"):
        build("own_needy:build", search=(tmp_path,))


def images(count: int = 3) -> Dataset:
    features = np.random.default_rng(0).random((count, 1, 8, 8)).astype(np.float32)
    return Dataset(features, np.zeros(count, dtype=np.int64), Classification(("a", "b")))


def test_only_scatter_linear_changes_the_features() -> None:
    data = images()
    assert model_features("linear", options={}, dataset=data) is data
    features = model_features("scatter-linear", options={"order": 1}, dataset=data)
    assert features.input_shape == (17, 2, 2)
    assert features.labels is data.labels


def test_scattering_features_are_scaled_by_a_public_constant() -> None:
    plain, scaled = (model_features("scatter-linear", options={"scale": s}, dataset=images()) for s in (1.0, 0.5))
    np.testing.assert_array_equal(scaled.features, plain.features / 2)


@pytest.mark.parametrize("options", [{"order": 3}, {"order": True}, {"scale": 0}, {"scale": float("nan")}, {"ordr": 1}])
def test_options_of_scattering_are_checked_before_anything_is_computed(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model\.options\."):
        model_features("scatter-linear", options=options, dataset=images())
