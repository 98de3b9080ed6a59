"""From the stored row to the integers that leave: one row more, whatever is in it, moves them by what is booked.

Rows are written into a file and read, preprocessed, trained on and truncated by what a deployed agent uses; the
coordinator chooses model, schema and weights. Noise is left out: the integers before it are what it has to hide.
"""

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import IntVector
from fedlearn.round.agreement import Agreement, agree
from fedlearn.round.contribution import Contributor
from fedlearn.round.source import Source, start_model
from fedlearn.task.classification import Classification
from tests.training.stacked.test_places import KINDS, chosen_weights

MODES = ["record-distributed", "record-local"]
LABELS = ["no", "yes", "perhaps"]
C = 0.5
LEARNING_RATE = 1e9  # a step of record-local is then far above the last bit of weights of 1e9
SETTINGS = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def config_of(mode: str, model: str, options: dict[str, object], columns: int) -> RunConfig:
    numbers = {f"x{number}": {"low": -1.0, "high": 1.0} for number in range(columns)}
    words = {"kind": {"values": ["a", "b", "c"]}, "seen": {"low": 0.0, "high": 9.0, "missing": ["63"]}}
    local = {"local_steps": 1} if mode == "record-local" else {}
    return RunConfig.from_values(
        {
            "run": {"rounds": 1, "spare_rounds": 0},
            "data": {
                "dataset": "csv",
                "label": "label",
                "classes": [[label] for label in LABELS],
                "columns": {**numbers, **words},
            },
            "model": {"name": model, "options": options},
            "training": {"learning_rate": LEARNING_RATE, "strategy": "FedAvg", **local},
            "privacy": {
                "mode": mode,
                "target_epsilon": 3.0,
                "delta": 1e-5,
                "max_grad_norm": C,
                "clipping_norm": 60.0,
                "sampling_probability": "1",
                "planned_records": 1000,
                "max_participations": 1,
            },
            "secure_aggregation": {
                "masking": True,
                "cohorts": "rotation",
                "planned_cohort": 4,
                "min_survivors": 3,
                "scale_bits": 16,
                "max_colluders": 1,
            },
        },
        place="a coordinator",
    )


def without_noise(noise_std: int, entries: int, entropy: object) -> IntVector:
    return np.zeros(entries, dtype=np.int64)


def agreed_on(
    config: RunConfig, example: Dataset, generator: np.random.Generator, kind: str
) -> tuple[Agreement, Vector]:
    model = start_model(config, example, search=[Path(__file__).parent])
    weights = chosen_weights(model, kind, generator)
    agreement = agree(
        config, model, population_size=4, device="cpu", entropy=stream_entropy(), step_noise=without_noise
    )
    return agreement, weights


def integers_of(agreement: Agreement, weights: Vector, records: Dataset) -> IntVector:
    """What is released before its noise: the sum on the grid, or a step's own sum on the grid of a step."""
    vector = agreement.work(weights, Contributor(lambda: records, (0,)))
    if agreement.config.privacy.mode == "record-distributed":
        grid: IntVector = agreement.mechanism.work.to_grid(vector[np.newaxis], agreement.plan)[0]
        return grid
    batch = agreement.plan.planned_batch
    assert batch is not None
    units = np.round(-vector / LEARNING_RATE * float(batch * Fraction(1 << 18) / Fraction(repr(C))))
    return units.astype(np.int64)


NUMBER = st.one_of(
    st.floats(-1.5, 1.5).map(repr),
    st.sampled_from(["", "63", "nan", "inf", "-1e400", "0x10", "1,5", "٣", "1_0", " 7 ", "-0", "a\x00b", "é" * 3000]),
)
WORD = st.sampled_from(["a", "b", "c", "R", "", " a", "A", "a\nb", 'x"y', "\u202e"])
LABEL = st.sampled_from([*LABELS, "2", "", "No"])


@st.composite
def rows(draw: st.DrawFn, columns: int) -> list[str]:
    """Any row: one that fits, one that does not, one with more fields or fewer."""
    cells = [draw(NUMBER) for _ in range(columns)] + [draw(WORD), draw(NUMBER), draw(LABEL)]
    return cells[: len(cells) + draw(st.sampled_from([0, 0, 0, 0, -1, -3]))] + draw(
        st.sampled_from([[], [], [], ["x"]])
    )


def good_rows(count: int, columns: int, generator: np.random.Generator) -> list[list[str]]:
    return [
        [
            *(repr(float(value)) for value in generator.uniform(-1, 1, columns)),
            "abc"[generator.integers(3)],
            str(generator.integers(0, 9)),
            LABELS[generator.integers(3)],
        ]
        for _ in range(count)
    ]


def write(path: Path, columns: int, lines: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{number}" for number in range(columns)), "kind", "seen", "label"])
        writer.writerows(lines)
    return path


@pytest.mark.lengthy
@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@SETTINGS
def test_any_row_more_moves_the_integers_by_at_most_what_is_booked(mode, tmp_path_factory, data) -> None:
    columns = data.draw(st.integers(1, 34))
    hidden = data.draw(st.lists(st.integers(1, 40), max_size=2))
    name, options = ("mlp", {"hidden": hidden}) if hidden else ("linear", {})
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lines = good_rows(data.draw(st.integers(0, 90)), columns, generator)
    one_more, at = data.draw(rows(columns)), data.draw(st.integers(0, len(lines)))
    config = config_of(mode, name, options, columns)
    folder = tmp_path_factory.mktemp("rows")
    few = Source("csv", write(folder / "few.csv", columns, lines)).records(config)
    many = Source("csv", write(folder / "many.csv", columns, [*lines[:at], one_more, *lines[at:]])).records(config)
    assert 0 <= len(many) - len(few) <= 1
    blank = Source("csv", folder / "few.csv").blank(config)
    agreement, weights = agreed_on(config, blank, generator, data.draw(st.sampled_from(KINDS)))
    moved = integers_of(agreement, weights, many) - integers_of(agreement, weights, few)
    assert np.linalg.norm(moved) <= agreement.plan.sensitivity


@pytest.mark.lengthy
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_so_does_an_image_with_the_model_for_images(mode, kind) -> None:
    config = RunConfig.from_values(
        {**config_of(mode, "cnn", {}, 1).model_dump(exclude_none=True), "data": {"dataset": "fashion-mnist"}},
        place="a test",
    )
    generator = np.random.default_rng(3)
    features = generator.uniform(0, 1, size=(70, 1, 28, 28)).astype(np.float32)
    records = Dataset(features, generator.integers(0, 10, 70), Classification(tuple("0123456789")))
    agreement, weights = agreed_on(config, records, generator, kind)
    for left_out in (0, 35, 69):
        fewer = records.take(np.delete(np.arange(70), left_out))
        moved = integers_of(agreement, weights, records) - integers_of(agreement, weights, fewer)
        assert np.linalg.norm(moved) <= agreement.plan.sensitivity
