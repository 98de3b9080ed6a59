"""What a holder agreed to for a session: the configuration, its plan derived anew, and the local work it means."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from fedlearn.config import RunConfig
from fedlearn.contribution import Contributor, LocalWork
from fedlearn.crypto.keystream import Entropy
from fedlearn.privacy.calibration import Plan, plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import MECHANISMS, Mechanism
from fedlearn.training.local import record_sum, train_privately, train_update
from fedlearn.vector import Layout, layout_of

__all__ = ["Agreement", "agree", "plan_for"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Everything a holder derived by itself from the configuration it was sent."""

    config: RunConfig
    plan: Plan
    mechanism: Mechanism
    layout: Layout
    work: LocalWork = field(repr=False)


def plan_for(config: RunConfig, *, dimension: int, population_size: int) -> Plan:
    """The run's plan: `privacy.calibration.plan` with the configuration spread out.

    Raises:
        ConfigError: the plan is refused, with the reason.
    """
    privacy, aggregation = config.privacy, config.secure_aggregation
    return plan(
        mode=privacy.mode,
        target_epsilon=privacy.target_epsilon,
        delta=privacy.delta,
        rounds=config.run.rounds,
        spare_rounds=config.run.spare_rounds,
        max_grad_norm=privacy.max_grad_norm,
        clipping_norm=privacy.clipping_norm,
        sampling_probability=config.sampling_probability,
        local_steps=config.training.local_steps,
        planned_records=privacy.planned_records,
        population_size=population_size,
        planned_cohort=aggregation.planned_cohort,
        min_survivors=aggregation.min_survivors,
        max_colluders=aggregation.max_colluders,
        max_participations=privacy.max_participations,
        scale_bits=aggregation.scale_bits,
        dimension=dimension,
        cohorts=aggregation.cohorts,
        masking=aggregation.masking,
    )


def agree(config: RunConfig, model: nn.Module, *, population_size: int, device: str, entropy: Entropy) -> Agreement:
    """Derive the plan and the local work; `model` stays warm and is written in place from round to round.

    Raises:
        ConfigError: the plan is refused.
    """
    layout = layout_of(model)
    derived = plan_for(config, dimension=layout.dimension, population_size=population_size)
    mechanism = MECHANISMS[config.privacy.mode]
    work = _local_work(config, derived, mechanism, model.to(device), device=device, entropy=entropy)
    return Agreement(config, derived, mechanism, layout, work)


def _local_work(
    config: RunConfig, derived: Plan, mechanism: Mechanism, model: nn.Module, *, device: str, entropy: Entropy
) -> LocalWork:
    privacy, training = config.privacy, config.training

    def record_sums(weights: Vector, client: Contributor) -> Vector:
        assert privacy.max_grad_norm is not None
        return record_sum(
            model,
            weights,
            client.records(),
            sampling_probability=config.sampling_probability,
            max_grad_norm=privacy.max_grad_norm,
            entropy=entropy,
            device=device,
        )

    def private_steps(weights: Vector, client: Contributor) -> Vector:
        assert privacy.max_grad_norm is not None
        assert derived.planned_batch is not None
        assert training.local_steps is not None
        return train_privately(
            model,
            weights,
            client.records(),
            local_steps=training.local_steps,
            learning_rate=training.learning_rate,
            max_grad_norm=privacy.max_grad_norm,
            sampling_probability=config.sampling_probability,
            planned_batch=derived.planned_batch,
            step_noise_std=derived.step_noise_std,
            entropy=entropy,
            device=device,
        )

    def update(weights: Vector, client: Contributor) -> Vector:
        assert training.local_steps is not None
        assert training.batch_size is not None
        return train_update(
            model,
            weights,
            client.records(),
            local_steps=training.local_steps,
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            seed=client.batch_seed,
            device=device,
        )

    kinds: Mapping[str, LocalWork] = {"record-sum": record_sums, "private-steps": private_steps, "update": update}
    return kinds[mechanism.local_work]
