"""Scores on public records, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from fedlearn.data.dataset import Dataset
from fedlearn.task.classification import Classification
from fedlearn.training.evaluate import evaluate

TASK = Classification(("cat", "dog", "eel"))


def as_logits(predicted: list[int], labels: list[int]) -> Dataset:
    """Records that an identity model scores as `predicted`."""
    return Dataset(np.eye(3, dtype=np.float32)[predicted], np.array(labels), TASK)


IDENTITY = np.concatenate([np.eye(3).reshape(-1), np.zeros(3)])


def test_confusion_counts_true_classes_in_rows_and_predicted_ones_in_columns() -> None:
    scores = evaluate(nn.Linear(3, 3), IDENTITY, as_logits([0, 1, 1, 2], [0, 0, 1, 1]), device="cpu")
    assert scores["confusion"] == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert scores["accuracy"] == 0.5


def test_a_class_that_never_occurs_scores_zero() -> None:
    scores = evaluate(nn.Linear(3, 3), IDENTITY, as_logits([0, 1], [0, 1]), device="cpu")
    assert scores["per_class"][2] == {"name": "eel", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_scores_equal_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((5_000, 4)).astype(np.float32)
    data = Dataset(features, generator.integers(0, 3, 5_000), TASK)
    scores = evaluate(nn.Linear(4, 3), weights := generator.standard_normal(15), data, device="cpu")
    logits = features.astype(np.float64) @ weights[:12].reshape(3, 4).T + weights[12:]
    predicted, odds = logits.argmax(axis=1), np.exp(logits)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(data.labels, predicted))
    assert scores["loss"] == pytest.approx(
        metrics.log_loss(data.labels, odds / odds.sum(axis=1, keepdims=True)), rel=1e-6
    )
    expected = metrics.precision_recall_fscore_support(data.labels, predicted)
    found = [[row[key] for row in scores["per_class"]] for key in ("precision", "recall", "f1", "support")]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-6)


def test_a_model_whose_layers_fit_together_in_another_way_is_scored_as_it_is() -> None:
    """Each layer has a stacked kernel, which wants records that are one vector each; these are rows."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Flatten())
    rows = as_logits([0, 1, 1, 2], [0, 0, 1, 1])
    data = Dataset(rows.features[:, np.newaxis], rows.labels, TASK)
    assert evaluate(model, IDENTITY, data, device="cpu")["accuracy"] == 0.5


def test_a_layer_that_works_in_place_leaves_the_records_as_they_are() -> None:
    data = as_logits([0, 1, 2], [0, 1, 2])
    data.features[:] -= 0.5
    kept = data.features.copy()
    evaluate(nn.Sequential(nn.Hardswish(inplace=True), nn.Linear(3, 3)), IDENTITY, data, device="cpu")
    np.testing.assert_array_equal(data.features, kept)


def test_a_model_is_scored_in_eval_mode_and_goes_back_to_its_own() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 3)).train()
    assert evaluate(model, IDENTITY, as_logits([0, 1, 2] * 9, [0, 1, 2] * 9), device="cpu")["accuracy"] == 1
    assert model.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpu_gives_the_same_scores() -> None:
    data = as_logits([0, 1, 1, 2], [0, 0, 1, 1])
    on_cpu, on_gpu = (evaluate(nn.Linear(3, 3), IDENTITY, data, device=device) for device in ("cpu", "cuda"))
    assert on_gpu.confusion == on_cpu.confusion
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-6)
