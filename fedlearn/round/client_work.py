"""What a configuration means as local work: for one client, and for many in one batched step where it can be."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TypedDict

from torch import nn

from fedlearn.config.run_config import Compile, RunConfig
from fedlearn.crypto.keystream import Entropy
from fedlearn.data.dataset import Dataset
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import MECHANISMS, Mechanism
from fedlearn.round.contribution import Contributor, LocalWork, StackedWork
from fedlearn.training.alone import AloneSums
from fedlearn.training.local import OnFailure, StepNoise, record_sum, train_privately, train_update
from fedlearn.training.record_sums import has_closed_form
from fedlearn.training.stacked.check import checked_trainer
from fedlearn.training.stacked.compiled import CompiledModel, worth_compiling
from fedlearn.training.stacked.model import has_kernels
from fedlearn.training.stacked.trainer import StackedTrainer, block_size, even_parts

__all__ = ["Work", "work_for"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Work:
    """The local work of one configuration, on one warm model that is written in place."""

    config: RunConfig
    plan: Plan
    model: nn.Module
    device: str
    entropy: Entropy = field(repr=False)
    step_noise: StepNoise
    compiled: Compile
    on_failure: OnFailure  # told of each client whose work failed, which then counts as zeros
    alone: AloneSums | None  # what computes gradients of a deployed holder, whom nobody may be trusted around
    _trainers: dict[tuple[int, ...], StackedTrainer | None] = field(default_factory=dict, repr=False)

    @property
    def block(self) -> int:
        """How many clients are trained together, by the records that a client of the plan has in a step.

        Where coins choose the records it is five steps' worth of clients, who are then sorted by what was chosen.
        """
        records = {
            "record-sum": self.plan.divisor / self.plan.planned_cohort,
            "private-steps": self.plan.planned_batch,
            "update": self.config.training.batch_size,
        }[MECHANISMS[self.plan.mode].work.name]
        assert records is not None
        sorted_by_size = MECHANISMS[self.plan.mode].samples_records
        return block_size(self.plan.dimension, math.ceil(records / 5 if sorted_by_size else records), self.device)

    def record_sums(self, weights: Vector, client: Contributor) -> Vector:
        """One sum of clipped gradients (mode record-distributed)."""
        privacy = self.config.privacy
        assert privacy.max_grad_norm is not None
        return record_sum(
            self.model,
            weights,
            client.records(),
            sampling_probability=self.config.sampling_probability,
            max_grad_norm=privacy.max_grad_norm,
            entropy=self.entropy,
            device=self.device,
            alone=self.alone,
        )

    def private_steps(self, weights: Vector, client: Contributor) -> Vector:
        """Steps of DP-SGD (mode record-local)."""
        failures: list[Exception] = []
        settings = self._private_settings()
        update = train_privately(
            self.model,
            weights,
            _records_or_none(client, self.on_failure),
            device=self.device,
            alone=self.alone,
            on_failure=failures.append,
            **settings,
        )
        if len(failures) == settings["local_steps"]:
            self.on_failure(failures[0])
        return update

    def update(self, weights: Vector, client: Contributor) -> Vector:
        """Steps of plain SGD (client modes, and `none`)."""
        return train_update(
            self.model, weights, client.records(), seed=client.batch_seed, device=self.device, **self._settings()
        )

    def stacked_record_sums(self, weights: Vector, clients: Sequence[Contributor]) -> Iterator[Vector]:
        """`record_sums` of many clients, block by block; of nobody where the model cannot be stacked."""
        privacy = self.config.privacy
        assert privacy.max_grad_norm is not None
        for trainer, _, held in self._blocks(clients, private=True):
            yield trainer.record_sums(
                weights,
                held,
                sampling_probability=self.config.sampling_probability,
                max_grad_norm=privacy.max_grad_norm,
                entropy=self.entropy,
            )

    def stacked_private_steps(self, weights: Vector, clients: Sequence[Contributor]) -> Iterator[Vector]:
        """`private_steps` of many clients, block by block; of nobody where the model cannot be stacked."""
        for trainer, _, held in self._blocks(clients, private=True):
            yield trainer.private_updates(weights, held, **self._private_settings())

    def stacked_updates(self, weights: Vector, clients: Sequence[Contributor]) -> Iterator[Vector]:
        """`update` of many clients, block by block; of nobody where the model cannot be stacked."""
        for trainer, block, held in self._blocks(clients, private=False):
            seeds = [client.batch_seed for client in block]
            yield trainer.updates(weights, list(zip(held, seeds, strict=True)), **self._settings())

    def _blocks(
        self, clients: Sequence[Contributor], *, private: bool
    ) -> Iterator[tuple[StackedTrainer, Sequence[Contributor], list[Dataset]]]:
        """Clients that are trained together, what they hold, and by what; none once the model failed its check."""
        for part in even_parts(len(clients), self.block):
            if None in self._trainers.values():
                return
            block = clients[part]
            held = [client.records() for client in block]
            trainer = self._trainer(held[0], private=private)
            if trainer is None:
                return
            yield trainer, block, held

    def _trainer(self, like: Dataset, *, private: bool) -> StackedTrainer | None:
        """The trainer for records of this shape, checked at its first use."""
        if like.input_shape not in self._trainers:
            found = checked_trainer(
                self.model,
                input_shape=like.input_shape,
                task=like.task,
                private=private,
                device=self.device,
            )
            if found is not None and self._compiles(found, like.input_shape):
                found = replace(found, model=CompiledModel(found.model.kernels, found.model.shapes, found.model.task))
            self._trainers[like.input_shape] = found
        return self._trainers[like.input_shape]

    def _compiles(self, trainer: StackedTrainer, input_shape: tuple[int, ...]) -> bool:
        """Whether steps go through the compiler: as `compiled` says, and for "auto" where a whole run's are enough."""
        if self.compiled != "auto":
            return self.compiled
        batch = self.plan.planned_batch or self.config.training.batch_size
        steps = self.config.run.rounds * self.plan.planned_cohort * (self.config.training.local_steps or 1)
        return self.device == "cpu" and worth_compiling(
            trainer.model, self.model, input_shape, int(steps * (batch or 0))
        )

    def _settings(self) -> "_Settings":
        training = self.config.training
        assert training.local_steps is not None
        assert training.batch_size is not None
        return {
            "local_steps": training.local_steps,
            "batch_size": training.batch_size,
            "learning_rate": training.learning_rate,
        }

    def _private_settings(self) -> "_PrivateSettings":
        training, privacy = self.config.training, self.config.privacy
        assert training.local_steps is not None
        assert privacy.max_grad_norm is not None
        assert self.plan.planned_batch is not None
        return {
            "local_steps": training.local_steps,
            "learning_rate": training.learning_rate,
            "max_grad_norm": privacy.max_grad_norm,
            "sampling_probability": self.config.sampling_probability,
            "planned_batch": self.plan.planned_batch,
            "step_noise_std": self.plan.noise_std,
            "step_noise": self.step_noise,
            "entropy": self.entropy,
        }


class _Settings(TypedDict):
    local_steps: int
    batch_size: int
    learning_rate: float


class _PrivateSettings(TypedDict):
    local_steps: int
    learning_rate: float
    max_grad_norm: float
    sampling_probability: Fraction
    planned_batch: Fraction
    step_noise_std: int
    step_noise: StepNoise
    entropy: Entropy


def work_for(
    config: RunConfig,
    plan: Plan,
    mechanism: Mechanism,
    model: nn.Module,
    *,
    device: str,
    entropy: Entropy,
    step_noise: StepNoise,
    compiled: Compile = False,
    alone: bool = True,
    on_failure: OnFailure = lambda _: None,
) -> tuple[LocalWork, StackedWork | None, int]:
    """The work of the mode for one client, and for many at once where every layer of `model` has a stacked kernel.

    The number is that of clients who are trained together. Record sums of one linear layer stay with their closed form,
    which is faster still. `alone`: no record's presence may change a bit of what another one adds, as a deployed holder
    needs it; a simulation protects nobody, and computes records side by side. `on_failure` is told of each client whose
    work failed.
    """
    sums = AloneSums(model, device) if alone and mechanism.samples_records else None
    work = Work(config, plan, model, device, entropy, step_noise, compiled, on_failure, sums)
    one: dict[str, LocalWork] = {
        "record-sum": work.record_sums,
        "private-steps": work.private_steps,
        "update": work.update,
    }
    many: dict[str, StackedWork] = {"private-steps": work.stacked_private_steps, "update": work.stacked_updates}
    if not has_closed_form(model):
        many["record-sum"] = work.stacked_record_sums
    stackable = sums is None and has_kernels(model)
    alone_one, together = _watched(one[mechanism.work.name], on_failure), many.get(mechanism.work.name)
    return alone_one, together if stackable else None, work.block


def _watched(work: LocalWork, on_failure: OnFailure) -> LocalWork:
    """`work`, whose exceptions are told before they are raised."""

    def watched(weights: Vector, client: Contributor) -> Vector:
        try:
            return work(weights, client)
        except Exception as error:
            on_failure(error)
            raise

    return watched


def _records_or_none(client: Contributor, on_failure: OnFailure) -> Dataset | None:
    """A client's records; None where reading them fails: its steps are taken all the same, with their noise."""
    try:
        return client.records()
    except Exception as error:  # docs/specification/privacy.md 3.5
        _log.exception("the records cannot be read; every step is noise alone")
        on_failure(error)
        return None
