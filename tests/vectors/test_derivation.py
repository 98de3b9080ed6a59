"""Section 9 of docs/protocol.md, computed a second time from its text: Python's integers, fractions and logarithms.

Where records are sampled the page names a theorem, and no second implementation of it stands here.
"""

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.round.agreement import plan_for
from fedlearn.round.context_fields import context_fields_of
from fedlearn.secagg.transcript import Context, Position

ORDERS = [*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024]
OWN_GRID = 2**18
FLOATS = {
    "training": ["learning_rate"],
    "privacy": ["target_epsilon", "delta", "max_grad_norm", "clipping_norm"],
}
LEFT_OUT = ["features", "path", "public_test", "public", "client_column", "population_size", "partition", "alpha"]


def canonical(toml: dict[str, dict[str, object]]) -> bytes:
    """The canonical bytes of a file that states every key that has a default."""
    told = {name: dict(section) for name, section in toml.items() if name != "runtime"}
    for section, keys in FLOATS.items():
        for key in keys:
            if key in told[section]:
                told[section][key] = repr(float(told[section][key]))
    options = told["training"]["strategy_options"]
    told["training"]["strategy_options"] = {key: repr(float(value)) for key, value in options.items()}
    told["model"]["options"] = {
        key: {"float": repr(value)} if isinstance(value, float) else value
        for key, value in told["model"]["options"].items()
    }
    told["data"] = {key: value for key, value in told["data"].items() if key not in LEFT_OUT}
    for column in told["data"].get("columns", {}).values():
        for key in ("low", "high", *(["impute"] if "values" not in column else [])):
            if key in column:
                column[key] = repr(float(column[key]))
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode("ascii")


def ceil_sqrt(value: int) -> int:
    return math.isqrt(value - 1) + 1


def derive(mode: str, privacy: dict[str, object], aggregation: dict[str, int], steps: int, attempts: int, d: int):
    """(clip_bound, sensitivity, noise_std of ctx) where nothing is sampled."""
    s = 2 ** aggregation["scale_bits"]
    clip_bound = math.floor(s * Fraction(repr(privacy["clipping_norm"])))
    rounding = 1 + Fraction(1, 2**10)
    if mode == "record-distributed":
        sensitivity = math.ceil(s * Fraction(repr(privacy["max_grad_norm"])) * rounding) + ceil_sqrt(d)
    elif mode == "record-local":
        sensitivity = math.ceil(OWN_GRID * rounding) + ceil_sqrt(d)
    else:
        sensitivity = clip_bound
    if mode == "none":
        return clip_bound, sensitivity, 0
    shared = mode in ("record-distributed", "client-distributed")
    h = aggregation["min_survivors"] - aggregation["max_colluders"] if shared else 1
    sums = steps if mode == "record-local" else 1
    releases = min(attempts, privacy["max_participations"])

    def epsilon(k: int) -> float:
        found = []
        for a in ORDERS:
            r = releases * sums * a / (2 * (k / 1000) ** 2)
            small = privacy["delta"] ** 2 > -math.expm1(-r)
            found.append(0.0 if small else r + math.log1p(-1 / a) - math.log(privacy["delta"] * a) / (a - 1))
        return max(0.0, min(found))

    low, high = 0, 10**7
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if epsilon(middle) <= privacy["target_epsilon"] else (middle, high)
        low, high = (low, high) if low < high else (high, low)
    k = next(k for k in range(max(1, low - 2), high + 3) if epsilon(k) <= privacy["target_epsilon"])
    square = -(-(12 * sensitivity**2 * k**2 + 10**6) // (12 * h * 10**6))
    return clip_bound, sensitivity, ceil_sqrt(square) if shared else 0


@given(
    mode=st.sampled_from(["record-distributed", "record-local", "client-distributed", "client-central", "none"]),
    epsilon=st.floats(0.05, 20),
    delta=st.sampled_from([1e-5, 1e-7, 0.001]),
    grad=st.floats(0.01, 3),
    clip=st.floats(0.5, 50),
    rounds=st.integers(1, 40),
    steps=st.integers(1, 5),
    bits=st.integers(10, 20),
    d=st.integers(1, 10**6),
    survivors=st.integers(7, 10),
    colluders=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_numbers_of_the_context_are_those_of_the_page(
    mode, epsilon, delta, grad, clip, rounds, steps, bits, d, survivors, colluders
) -> None:
    records = mode.startswith("record")
    values = {
        "run": {"rounds": rounds, "spare_rounds": 1, "seed": 0},
        "data": {"dataset": "digits"},
        "model": {"name": "linear", "options": {}},
        "training": {"learning_rate": 1.0, "strategy": "FedAvg", "strategy_options": {}},
        "privacy": {"mode": mode, "clipping_norm": clip},
        "secure_aggregation": {
            "masking": True,
            "cohorts": "rotation",
            "planned_cohort": 10,
            "min_survivors": survivors,
            "max_colluders": colluders,
            "scale_bits": bits,
        },
    }
    if mode != "record-distributed":
        values["training"]["local_steps"] = steps
    if not records:
        values["training"]["batch_size"] = 8
    if mode != "none":
        values["privacy"] |= {"target_epsilon": epsilon, "delta": delta, "max_participations": rounds + 1}
    if records:
        values["privacy"] |= {"max_grad_norm": grad, "sampling_probability": "1", "planned_records": 100}
    config = RunConfig.from_values(values, place="a test")
    try:
        plan = plan_for(config, dimension=d, population_size=10)
    except ConfigError:
        return  # a plan that is refused derives nothing
    expected = derive(mode, values["privacy"], values["secure_aggregation"], steps, rounds + 1, d)
    share = plan.noise_std if MECHANISMS[mode].noise.in_shares else 0
    assert (plan.clip_bound, plan.sensitivity, share) == expected


def test_the_canonical_configuration_is_that_of_the_page() -> None:
    toml = {
        "run": {"rounds": 3, "spare_rounds": 1, "seed": 0},
        "data": {
            "dataset": "csv",
            "label": "ill",
            "classes": [["no"], ["ja", "\u00e9"]],
            "features": ["p1", "p2", "p3", "sex"],
            "columns": {
                "p*": {"low": -1, "high": 1, "missing": []},
                "p2": {"low": 0, "high": 1, "missing": []},
                "age": {"low": 0, "high": 100.5, "impute": 3, "missing": ["?"]},
                "sex": {"values": ["f", "m"], "impute": "f", "missing": []},
            },
            "path": "/nowhere.csv",
            "population_size": 4,
        },
        "model": {"name": "own.code:build", "options": {"width": 8, "rate": 0.5, "wide": True, "sizes": [1, 2]}},
        "training": {"learning_rate": 4, "strategy": "FedAvgM", "strategy_options": {"server_momentum": 0.5}},
        "privacy": {
            "mode": "record-distributed",
            "target_epsilon": 3,
            "delta": 1e-5,
            "max_grad_norm": 0.1,
            "clipping_norm": 50.0,
            "sampling_probability": "1/4",
            "planned_records": 480,
            "max_participations": 4,
        },
        "secure_aggregation": {
            "masking": True,
            "cohorts": "rotation",
            "planned_cohort": 5,
            "min_survivors": 4,
            "max_colluders": 1,
            "scale_bits": 16,
            "stage_seconds": [30, 30, 600, 30, 30],
        },
        "runtime": {"workers": 1},
    }
    config = RunConfig.from_values(json.loads(json.dumps(toml)), place="a test")
    columns = toml["data"]["columns"]
    columns["p1"], columns["p3"] = dict(columns["p*"]), columns.pop("p*")
    assert config.to_bytes() == canonical(toml)
    assert RunConfig.from_bytes(config.to_bytes()).to_bytes() == config.to_bytes()


@pytest.mark.parametrize("probability", ["1", "0.25"])
def test_sampling_of_the_context_is_in_lowest_terms(load_digits, probability) -> None:
    config = load_digits(f"privacy.sampling_probability={probability}")
    plan = plan_for(config, dimension=650, population_size=10)
    from fedlearn.model.layout import Layout

    layout = Layout(("w",), ((650,),))
    context = Context(Position(bytes(16), 1, 0), bytes(32), context_fields_of(config, plan, layout, bytes(32)))
    numerator, denominator = (1, 1) if probability == "1" else (1, 4)
    assert context.to_bytes()[191:199] == numerator.to_bytes(4, "big") + denominator.to_bytes(4, "big")
