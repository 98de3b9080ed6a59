"""Shadow models: a run's training on the run's own code, again and again, with other canaries among its records.

A canary here is a record with a wrong label: what is right a small model knows from other records as well. Who trains
are the `Parties` of the audit; the loop is a run's, without ledger, drop-outs and masks, which change no sum.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedlearn.audit.canaries import Holding
from fedlearn.audit.parties import MakeParties
from fedlearn.audit.records import count_records, some_records
from fedlearn.audit.setting import changed
from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.flower.strategies import StrategyOptimizer
from fedlearn.model.vector import layout_of, read_parameters, write_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.sampling import poisson_sample
from fedlearn.round.agreement import agree
from fedlearn.round.contribution import Contributor

__all__ = ["Shadows", "Subject", "subject_of"]

_MOST_RECORDS, _MOST_ROUNDS = 3_000, 30
_CANARIES = 64

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Subject:
    """What shadow models are trained for and on: a run, cut to a size that can be trained dozens of times."""

    config: RunConfig
    model: nn.Module = field(repr=False)
    records: Dataset = field(repr=False)  # canaries mislabeled
    canaries: NDArray[np.int64] = field(repr=False)  # their positions
    population_size: int

    def without_privacy(self) -> "Subject":
        """The same in mode `none`: each client's step is that of all its records."""
        steps: dict[str, object] = {"local_steps": 1, "batch_size": len(self.records)}
        return replace(self, config=changed(self.config, {"privacy": {"mode": "none"}, "training": steps}))


def subject_of(config: RunConfig) -> Subject:
    """The run `config` with at most 3,000 records and 30 rounds; its plan is then derived anew for these.

    Raises:
        ConfigError: data or model cannot be used.
    """
    data, whole = some_records(config, _MOST_RECORDS), count_records(config)
    smaller: dict[str, dict[str, object]] = {"run": {"rounds": min(config.run.rounds, _MOST_ROUNDS)}}
    if config.privacy.planned_records is not None and len(data.train) < whole:
        planned = config.privacy.planned_records * len(data.train) / whole
        smaller["privacy"] = {"planned_records": max(1, round(planned))}
    canaries = np.linspace(0, len(data.train) - 1, min(_CANARIES, len(data.train) // 8)).astype(np.int64)
    return Subject(
        config=changed(config, smaller).found_in(config.source) if config.source else changed(config, smaller),
        model=data.build_model(config),
        records=_mislabeled(data.train, canaries),
        canaries=canaries,
        population_size=data.population_size,
    )


def _mislabeled(records: Dataset, canaries: NDArray[np.int64]) -> Dataset:
    """The same records with another class for each canary, every other class in turn."""
    labels, classes = records.labels.copy(), records.task.outputs
    labels[canaries] = (labels[canaries] + 1 + np.arange(len(canaries)) % (classes - 1)) % classes
    return replace(records, labels=labels)


class Shadows:
    """Trains shadow models of one subject."""

    def __init__(self, subject: Subject, parties: MakeParties) -> None:
        self._subject, entropy = subject, stream_entropy()
        agreement = agree(
            subject.config,
            subject.model,
            population_size=subject.population_size,
            device="cpu",
            entropy=entropy,
            alone=False,  # as a simulation computes: many models are trained
        )
        self.plan = agreement.plan
        self._parties = parties(agreement, entropy)
        self._parties.work = agreement.work
        self._start = read_parameters(subject.model)
        self._coins: Entropy = stream_entropy()

    def train(self, count: int) -> Iterator[tuple[Flags, Vector]]:
        """For each of `count` models: which canaries were among its records (k,), and how it judges each of them (k,).

        Half of the canaries are in, by secret coins. The judgment is the log-odds of the canary's wrong label.
        """
        subject = self._subject
        for _ in range(count):
            chosen = poisson_sample(len(subject.canaries), Fraction(1, 2), self._coins)
            members = np.isin(np.arange(len(subject.canaries)), chosen)
            weights = self._weights(members)
            yield members, self._log_odds(weights)

    def _weights(self, members: Flags) -> Vector:
        """The final weights of a run in which the canaries that are no `members` are left out."""
        subject, training = self._subject, self._subject.config.training
        present = np.ones(len(subject.records), dtype=np.bool_)
        present[subject.canaries[~members]] = False
        clients = [
            Contributor(Holding(subject.records.take(np.flatnonzero(present & owned))), (number,))
            for number, owned in enumerate(self._owners())
        ]
        optimizer = StrategyOptimizer(training.strategy, training.strategy_options, layout_of(subject.model))
        weights = self._start
        cohort = subject.config.secure_aggregation.planned_cohort
        for number in range(subject.config.run.rounds):
            asked = [clients[(number * cohort + k) % len(clients)] for k in range(cohort)]
            self._parties.weights = weights
            total = self._parties.contribute(asked).sum(axis=0, dtype=np.uint32)
            update = self._parties.finish([total], learning_rate=training.learning_rate)
            weights = optimizer.step(number + 1, weights, update)
        return weights

    def _owners(self) -> Iterator[Flags]:
        """Which records (n,) each client holds: in turn."""
        positions, size = np.arange(len(self._subject.records)), self._subject.population_size
        return (positions % size == client for client in range(size))

    def _log_odds(self, weights: Vector) -> Vector:
        subject = self._subject
        write_parameters(subject.model, weights)
        canaries = subject.records.take(subject.canaries)
        subject.model.eval()
        with torch.inference_mode():
            logits = subject.model(torch.from_numpy(canaries.features)).to(torch.float64)
            labels = torch.from_numpy(canaries.labels)
            own = logits.gather(1, labels[:, None])[:, 0]
            others = logits.masked_fill(functional.one_hot(labels, logits.shape[1]).to(torch.bool), -math.inf)
            odds: Vector = (own - torch.logsumexp(others, dim=1)).numpy()
        return odds
