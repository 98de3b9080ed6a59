"""Keys, canonical bytes and names of a run's configuration."""

import json
import re
import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fedlearn.config.required import REQUIRED_KEYS
from fedlearn.config.run_config import REGISTRY_NAMES, ColumnConfig, RunConfig
from fedlearn.errors import ConfigError
from fedlearn.host.shipped import scenario_path
from fedlearn.secagg.messages import MAX_CONFIG_BYTES
from fedlearn.wording import nearest, one_line

# Every key of a run; docs/configuration.md says what each means.
KEYS = {
    "run": {"rounds", "spare_rounds", "seed"},
    "data": {
        *("dataset", "public_test", "public", "ignore", "label", "classes", "columns", "features"),
        *("path", "client_column", "population_size", "partition", "alpha"),
    },
    "model": {"name", "options"},
    "training": {"local_steps", "batch_size", "learning_rate", "strategy", "strategy_options"},
    "privacy": {
        *("mode", "target_epsilon", "delta", "max_grad_norm", "clipping_norm"),
        *("sampling_probability", "planned_records", "max_participations"),
    },
    "secure_aggregation": {
        *("masking", "cohorts", "planned_cohort", "min_survivors", "max_colluders", "scale_bits", "stage_seconds"),
    },
    "runtime": {"engine", "device", "workers", "dropout", "compile", "ray_address"},
}
COLUMN_KEYS = {"low", "high", "values", "impute", "missing"}
SIMULATE_ONLY = ("features", "path", "client_column", "population_size", "partition", "alpha")


def section(name: str) -> type[BaseModel]:
    model = RunConfig.model_fields[name].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model


# ---------------------------------------------------------------- keys


def test_every_key_exists_and_no_other() -> None:
    assert set(RunConfig.model_fields) == set(KEYS)
    for name, keys in KEYS.items():
        assert set(section(name).model_fields) == keys
    assert set(ColumnConfig.model_fields) == COLUMN_KEYS


def test_scores_on_a_share_of_private_records_are_refused_unless_they_are_declared_public() -> None:
    share = ["data.dataset=csv", "data.path=a.csv", "data.public_test=0.1"]
    with pytest.raises(ConfigError, match="a share of the records that the run protects"):
        RunConfig.load("digits", share)
    RunConfig.load("digits", [*share, "data.public=true"])
    RunConfig.load("digits", ["data.dataset=csv", "data.path=a.csv", "data.public_test=b.csv"])
    with pytest.raises(ConfigError, match="the file to train on"):
        RunConfig.load("digits", ["data.dataset=csv", "data.path=a.csv", "data.public_test=./a.csv"])


def test_no_privacy_parameter_has_a_default() -> None:
    for name in ("privacy", "secure_aggregation"):
        for key, field in section(name).model_fields.items():
            # Absence (None) is no value: a mode that needs the key refuses the file. Deadlines guard nothing.
            assert field.is_required() or field.default is None or key == "stage_seconds", key
    for key in ("rounds", "spare_rounds"):
        assert section("run").model_fields[key].is_required()
    for key in ("local_steps", "batch_size"):
        assert section("training").model_fields[key].default is None


def test_required_keys_are_those_of_the_mechanisms() -> None:
    from fedlearn.privacy.mechanisms import MECHANISMS

    assert set(REQUIRED_KEYS) == set(MECHANISMS)


def test_registry_names_are_those_of_the_registries() -> None:
    from fedlearn.data import DATASETS
    from fedlearn.data.partition import PARTITIONS
    from fedlearn.flower.strategies import STRATEGIES
    from fedlearn.model.builders import MODELS
    from fedlearn.privacy.mechanisms import MECHANISMS

    registries = {
        "data.dataset": DATASETS,
        "data.partition": PARTITIONS,
        "model.name": MODELS,
        "training.strategy": STRATEGIES,
        "privacy.mode": MECHANISMS,
    }
    assert {key: sorted(registry) for key, registry in registries.items()} == {
        key: list(names) for key, names in REGISTRY_NAMES.items()
    }


# ---------------------------------------------------------------- canonical bytes

positive = st.floats(min_value=1e-12, max_value=1e12)
count = st.integers(1, 2**31 - 1)
word = st.text(min_size=1, max_size=8)
# A surrogate alone is no text in UTF-8, so no TOML file can hold one.
name = word.filter(lambda text: text.isprintable())


def column() -> st.SearchStrategy[dict[str, Any]]:
    number = st.fixed_dictionaries(
        {"low": st.floats(-1e9, 0), "high": st.floats(1, 1e9)},
        optional={"impute": st.floats(0, 1), "missing": st.lists(name, max_size=2)},
    )
    category = st.fixed_dictionaries(
        {"values": st.lists(name, min_size=1, max_size=3, unique=True)}, optional={"impute": name}
    )
    return number | category


options = st.dictionaries(
    name.filter(lambda key: key != "options"),
    st.booleans()
    | st.integers(1 - 2**31, 2**31 - 1)
    | st.floats(-1e9, 1e9)
    | name
    | st.lists(st.integers(0, 9), max_size=3),
    max_size=3,
)
configurations = st.fixed_dictionaries(
    {
        "run": st.fixed_dictionaries(
            {"rounds": count, "spare_rounds": st.integers(0, 9), "seed": st.integers(0, 2**62)}
        ),
        "data": st.fixed_dictionaries(
            {"dataset": st.sampled_from(REGISTRY_NAMES["data.dataset"]), "public": st.just(True)},
            optional={
                "label": name,
                "classes": st.lists(st.lists(name, min_size=1, max_size=2), min_size=1, max_size=2),
                "columns": st.dictionaries(name.filter(lambda name: "*" not in name), column(), max_size=2),
                "path": name,
                "population_size": count,
                "public_test": st.floats(0, 0.9),
            },
        ),
        "model": st.fixed_dictionaries(
            {"name": st.sampled_from(REGISTRY_NAMES["model.name"])}, optional={"options": options}
        ),
        "training": st.fixed_dictionaries(
            {
                "learning_rate": positive,
                "strategy": st.sampled_from(REGISTRY_NAMES["training.strategy"]),
                "local_steps": count,
                "batch_size": count,
            },
            optional={"strategy_options": st.dictionaries(name, st.floats(-1e9, 1e9), max_size=2)},
        ),
        "privacy": st.fixed_dictionaries(
            {
                "mode": st.sampled_from(REGISTRY_NAMES["privacy.mode"]),
                "target_epsilon": positive,
                "delta": st.floats(1e-12, 0.5),
                "max_grad_norm": positive,
                "clipping_norm": positive,
                "sampling_probability": st.fractions(
                    min_value=Fraction(1, 10**6), max_value=1, max_denominator=10**6
                ).map(str),
                "planned_records": count,
                "max_participations": count,
            }
        ),
        "secure_aggregation": st.fixed_dictionaries(
            {
                "masking": st.booleans(),
                "cohorts": st.sampled_from(["rotation", "poisson"]),
                "planned_cohort": count,
                "min_survivors": count,
                "max_colluders": st.integers(0, 9),
                "scale_bits": st.integers(0, 20),
            },
            optional={"stage_seconds": st.lists(st.integers(1, 2**16 - 1), min_size=5, max_size=5)},
        ),
    }
)


@given(configurations)
@settings(max_examples=150, deadline=None)
def test_bytes_give_the_configuration_back(values: dict[str, Any]) -> None:
    config = RunConfig.from_values(values, place="test")
    body = config.to_bytes()
    received = RunConfig.from_bytes(body)
    assert received.to_bytes() == body
    for section_name in ("run", "model", "training", "privacy", "secure_aggregation"):
        assert getattr(received, section_name) == getattr(config, section_name)
    for key in ("dataset", "label", "classes", "columns"):
        assert getattr(received.data, key) == getattr(config.data, key)


@given(configurations)
@settings(max_examples=100, deadline=None)
def test_bytes_are_sorted_ascii_json_without_spaces_or_floats(values: dict[str, Any]) -> None:
    body = RunConfig.from_values(values, place="test").to_bytes()

    def no_floats(text: str) -> None:
        raise AssertionError(f"{text} is a float in the bytes")

    read = json.loads(body.decode("ascii"), parse_float=no_floats, parse_constant=no_floats)
    assert json.dumps(read, sort_keys=True, separators=(",", ":")).encode("ascii") == body
    assert not set(read["data"]) & {*SIMULATE_ONLY, "public_test", "public"}
    assert "runtime" not in read


def test_a_float_is_its_repr_and_an_integer_an_integer(load_digits: Callable[..., RunConfig]) -> None:
    read = json.loads(
        load_digits("privacy.target_epsilon=3", "privacy.delta=1e-5", "training.learning_rate=0.1").to_bytes()
    )
    assert read["privacy"]["target_epsilon"] == "3.0"
    assert read["privacy"]["delta"] == "1e-05"
    assert read["training"]["learning_rate"] == "0.1"
    assert read["training"]["strategy_options"] == {"server_momentum": "0.8"}
    assert read["run"]["rounds"] == 30
    assert read["secure_aggregation"]["stage_seconds"] == [30, 30, 600, 30, 30]


@pytest.mark.parametrize("name", ["options", "columns", "strategy_options", "float", "low"])
def test_a_column_or_option_may_have_the_name_of_a_key(name: str, load_digits: Callable[..., RunConfig]) -> None:
    config = load_digits(
        f"data.columns.{name}={{low=0, high=1.5, impute=0.5}}",
        f"model.options.{name}=0.25",
        f"training.strategy_options.{name}=0.75",
    )
    received = RunConfig.from_bytes(config.to_bytes())
    assert received.data.columns == config.data.columns
    assert received.model.options == config.model.options
    assert received.training.strategy_options == config.training.strategy_options


def test_equal_configurations_give_equal_bytes(load_digits: Callable[..., RunConfig]) -> None:
    assert load_digits("privacy.target_epsilon=3").to_bytes() == load_digits("privacy.target_epsilon=3.0").to_bytes()
    halves = [load_digits(f"privacy.sampling_probability={text}") for text in ("1/2", "0.5", "2/4", "0.500", "'0.5'")]
    assert {config.to_bytes() for config in halves} == {halves[0].to_bytes()}


def test_what_cannot_change_the_guarantee_is_not_in_the_bytes(load_digits: Callable[..., RunConfig]) -> None:
    elsewhere = load_digits(
        "runtime.dropout=0.5", "runtime.device=cpu", "data.partition=shards", "data.public_test=0.1"
    )
    assert elsewhere.to_bytes() == load_digits().to_bytes()
    assert load_digits("secure_aggregation.min_survivors=9").to_bytes() != load_digits().to_bytes()


def not_canonical() -> dict[str, Callable[[dict[str, Any]], bytes]]:
    def dumped(values: dict[str, Any], **how: Any) -> bytes:
        return json.dumps(values, **{"sort_keys": True, "separators": (",", ":"), **how}).encode()

    def changed(where: str, key: str, value: object) -> Callable[[dict[str, Any]], bytes]:
        return lambda read: dumped({**read, where: {**read[where], key: value}})

    return {
        "spaces": lambda read: dumped(read, separators=(", ", ": ")),
        "a line break at the end": lambda read: dumped(read) + b"\n",
        "another order": lambda read: dumped(dict(reversed(read.items())), sort_keys=False),
        "a key twice": lambda read: dumped(read).replace(b'"rounds":30', b'"rounds":30,"rounds":30'),
        "another value before": lambda read: dumped(read).replace(b'"rounds":30', b'"rounds":31,"rounds":30'),
        "a float as a number": changed("privacy", "target_epsilon", 3.0),
        "a float as an integer": changed("privacy", "target_epsilon", 3),
        "a float with another text": changed("privacy", "target_epsilon", "3.00"),
        "an infinite float": changed("privacy", "target_epsilon", "inf"),
        "an integer as text": changed("run", "rounds", "30"),
        "an integer as a float": changed("run", "rounds", 30.0),
        "a probability that is not reduced": changed("privacy", "sampling_probability", "2/2"),
        "a probability without end": changed("privacy", "sampling_probability", "1e-999999999"),
        "a null": changed("data", "label", None),
        "a default left out": lambda read: dumped({**read, "model": {"name": "linear"}}),
        "an unknown key": changed("run", "shuffle", True),
        "an unknown section": lambda read: dumped({**read, "extra": {}}),
        "a simulate-only key": changed("data", "path", "/etc/passwd"),
        "a partition": changed("data", "partition", "iid"),
        "a population": changed("data", "population_size", 10),
        "the coordinator's test data": changed("data", "public_test", "0.2"),
        "a runtime": lambda read: dumped({**read, "runtime": {"dropout": "0.0"}}),
        "a section that is a list": lambda read: dumped({**read, "run": []}),
        "a section that is text": lambda read: dumped({**read, "run": "rounds"}),
        "an option that is a table": changed("model", "options", {"depth": {"integer": 3}}),
        "options that are a list": changed("model", "options", [1]),
        "a column that is text": changed("data", "columns", {"a": "low"}),
        "an integer too large for a float": changed("training", "strategy_options", {"server_momentum": 10**400}),
        "letters beyond ASCII": lambda read: dumped(
            {**read, "data": {**read["data"], "label": "ä"}}, ensure_ascii=False
        ),
        "a list": lambda read: b"[]",
        "a number": lambda read: b"3",
        "nothing": lambda read: b"",
        "no JSON": lambda read: b"{",
        "a deep list": lambda read: b"[" * 100_000,
        "not a number": lambda read: dumped(read).replace(b'"rounds":30', b'"rounds":NaN'),
    }


@pytest.mark.parametrize("case", not_canonical())
def test_bytes_that_are_not_canonical_are_refused(case: str, load_digits: Callable[..., RunConfig]) -> None:
    body = load_digits().to_bytes()
    received = not_canonical()[case](json.loads(body))
    assert received != body
    with pytest.raises(ConfigError):
        RunConfig.from_bytes(received)


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_with_a_sentence(body: bytes) -> None:
    with pytest.raises(ConfigError):
        RunConfig.from_bytes(body)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_byte_gives_a_refusal_or_exactly_what_it_says(data: st.DataObject) -> None:
    body = bytearray(RunConfig.load("digits").to_bytes())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        received = RunConfig.from_bytes(bytes(body))
    except ConfigError:
        return
    assert received.to_bytes() == bytes(body)


def test_a_run_written_as_toml_is_read_back(load_digits: Callable[..., RunConfig], tmp_path: Any) -> None:
    config = load_digits("privacy.sampling_probability=1/3", "model.options={}", "runtime.dropout=0.1")
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert RunConfig.load(tmp_path / "config.toml").model_dump() == config.model_dump()


# ---------------------------------------------------------------- --set and names


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("run.rounds=7", "run.rounds", 7),
        (" run.rounds = 7 ", "run.rounds", 7),
        ("privacy.target_epsilon=3", "privacy.target_epsilon", 3.0),
        ("privacy.delta=1e-6", "privacy.delta", 1e-6),
        ("privacy.sampling_probability=1/4", "privacy.sampling_probability", "1/4"),
        ("privacy.sampling_probability=0.25", "privacy.sampling_probability", "1/4"),
        ("privacy.sampling_probability=1", "privacy.sampling_probability", "1"),
        ("privacy.sampling_probability=0.000001", "privacy.sampling_probability", "1/1000000"),
        ("runtime.engine=ray", "runtime.engine", "ray"),
        ('runtime.engine="ray"', "runtime.engine", "ray"),
        ("secure_aggregation.masking=true", "secure_aggregation.masking", True),
        ("secure_aggregation.stage_seconds=[1, 2, 3, 4, 5]", "secure_aggregation.stage_seconds", (1, 2, 3, 4, 5)),
        ("training.strategy_options.server_momentum=0.5", "training.strategy_options", {"server_momentum": 0.5}),
        ("training.strategy_options={}", "training.strategy_options", {}),
        ("model.options.hidden=[3, 4]", "model.options", {"hidden": (3, 4)}),
        ("data.label=a=b", "data.label", "a=b"),
    ],
)
def test_an_override_sets_one_key(text: str, key: str, value: object, load_digits: Callable[..., RunConfig]) -> None:
    part, _, field = key.partition(".")
    assert getattr(getattr(load_digits(text), part), field) == value


def test_overrides_may_be_a_mapping(load_digits: Callable[..., RunConfig]) -> None:
    assert RunConfig.load("digits", {"run.rounds": 7}) == load_digits("run.rounds=7")


@pytest.mark.parametrize("name", ['"age at visit"', "'age at visit'", "age at visit"])
def test_a_name_in_quotes_is_one_name(name: str, load_digits: Callable[..., RunConfig]) -> None:
    (column, bounds), *others = load_digits(f"data.columns.{name}.low=0").data.columns.items()
    assert (column, bounds.low, others) == ("age at visit", 0.0, [])


def test_a_name_in_quotes_may_have_a_dot_and_an_equals_sign(load_digits: Callable[..., RunConfig]) -> None:
    columns = load_digits('data.columns."a.b=c".low=0').data.columns
    assert list(columns) == ["a.b=c"]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbf" + scenario_path("digits").read_bytes())
    assert RunConfig.load(file).to_bytes() == RunConfig.load("digits").to_bytes()


def test_a_linked_file_counts_where_the_link_lies(tmp_path: Path) -> None:
    for folder in ("store", "mine"):
        (tmp_path / folder).mkdir()
    text = scenario_path("digits").read_text().replace('dataset = "digits"', 'dataset = "csv"\npath = "table.csv"')
    (tmp_path / "store" / "run-7.toml").write_text(text)
    link = tmp_path / "mine" / "run.toml"
    link.symlink_to(tmp_path / "store" / "run-7.toml")
    config = RunConfig.load(link)
    assert config.data.path == str(tmp_path / "mine" / "table.csv")
    assert config.source == link  # beside which a model of one's own is looked for


def test_the_last_override_counts(load_digits: Callable[..., RunConfig]) -> None:
    assert load_digits("run.rounds=7", "run.rounds=8").run.rounds == 8


def test_a_path_is_relative_to_where_it_is_stated(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlearn.host.shipped import scenario_path

    text = scenario_path("digits").read_text(encoding="utf-8").replace("[data]", '[data]\npath = "mine.csv"')
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "run.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert RunConfig.load("there/run.toml").data.path == str(tmp_path / "there" / "mine.csv")
    assert RunConfig.load("there/run.toml", ["data.path=mine.csv"]).data.path == str(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("mistake", "meant"),
    [
        ("privacy.epsilom", "privacy.target_epsilon"),
        ("privacy.target_epsilom", "privacy.target_epsilon"),
        ("privacy.clip_norm", "privacy.clipping_norm"),
        ("privacy.grad_norm", "privacy.max_grad_norm"),
        ("run.round", "run.rounds"),
        ("run.spare", "run.spare_rounds"),
        ("training.lerning_rate", "training.learning_rate"),
        ("secure_aggregation.colluders", "secure_aggregation.max_colluders"),
        ("privacy.min_survivors", "secure_aggregation.min_survivors"),
        ("run.population", "data.population_size"),
        ("runtime.drop_out", "runtime.dropout"),
    ],
)
def test_a_mistyped_key_is_told_the_nearest(mistake: str, meant: str, load_digits: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(mistake)} is not a key of a run; did you mean {meant}\?"):
        load_digits(f"{mistake}=3")


def test_a_name_like_no_other_is_given_none() -> None:
    assert nearest("zzz", ["rounds", "seed"]) is None
    assert nearest("zzz", []) is None


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_a_sentence_is_one_printable_line(text: str) -> None:
    assert one_line(text).isprintable()
    assert one_line("privacy.delta is 3") == "privacy.delta is 3"


# ---------------------------------------------------------------- what a configuration may cost its reader

MANY = {
    "hidden layers": ("model", "options", {"hidden": [1] * 400_000}, "model.options.hidden"),
    "an integer": ("model", "options", {"hidden": [2**62]}, "model.options.hidden"),
    "options": ("model", "options", {f"o{at}": 1 for at in range(50_000)}, "model.options has 50000 entries"),
    "a data set's name": ("data", "dataset", "digit_" * 160_000, "data.dataset"),
    "a model's name": ("model", "name", "mlp_" * 200_000, "model.name"),
    "a mode": ("privacy", "mode", "none_" * 200_000, "privacy.mode"),
    "a key": ("data", "digit_" * 160_000, 1, "data.digit_"),
    "keys": ("data", "label", {f"k{at}": 1 for at in range(50_000)}, "data.label"),
    "columns": ("data", "columns", {f"c{at}": {} for at in range(50_000)}, "data.columns has 50000 entries"),
    "values": ("data", "columns", {"c": {"values": ["a"] * 200_000}}, "data.columns.c.values has 200000 entries"),
    "wrong values": ("data", "columns", {f"c{at}": {"values": [1] * 400} for at in range(1000)}, "c0.values.0 is 1"),
    "wrong classes": ("data", "classes", [[1] * 400_000], r"data.classes.0.0 is 1"),
    "classes": ("data", "classes", [[]] * 200_000, "data.classes has 200000 entries"),
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[pytest.mark.slow] if at % 3 else []) for at, what in enumerate(MANY)]
)
def test_a_configuration_of_a_megabyte_is_refused_soon_with_a_short_sentence(what: str) -> None:
    """An agent reads what it is sent before it knows who asks. Most of these took over a minute or half a GB."""
    section, key, value, place = MANY[what]
    values = json.loads(RunConfig.load("digits", []).to_bytes())
    values[section][key] = value
    body = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=place) as refused:
            RunConfig.from_bytes(body)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 10  # traced: several times slower than it is
    assert most < 100 * 10**6
    assert len(str(refused.value)) < 500


@pytest.mark.slow
def test_a_table_of_20_000_columns_stays_possible() -> None:
    columns = {f"g{at:05}": {"low": 0.0, "high": 1.0} for at in range(20_000)}
    config = RunConfig.load("digits", {"data.columns": columns})
    assert RunConfig.from_bytes(config.to_bytes()).data.columns.keys() == columns.keys()
    assert len(config.to_bytes()) < MAX_CONFIG_BYTES


@pytest.mark.parametrize("seconds", [0, 1 << 16])
def test_seconds_that_no_context_can_hold_are_refused(seconds: int) -> None:
    with pytest.raises(ConfigError, match=rf"stage_seconds\.2 is {seconds}; expected a number"):
        RunConfig.load("digits", [f"secure_aggregation.stage_seconds=[30, 30, {seconds}, 30, 30]"])
    RunConfig.load("digits", ["secure_aggregation.stage_seconds=[1, 1, 65535, 1, 1]"])
