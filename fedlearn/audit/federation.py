"""A federation of a run's own engine whose coordinator is the attacker: it chooses the weights, and keeps what it gets.

Records are the scenario's, read as a run reads them. Everything between a stored record and the released sum is what
`fedlearn simulate` runs: partition, agents or cohorts, worker processes, kernels, clipping, noise, masks, the ledger
and the loop of rounds. A record is stored many times, so that a release shows what becomes of it under the noise.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.setting import Changes, changed, unclipped_rate
from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.pooled_data import SimulatedData, partition_of
from fedlearn.coordinator.rounds import Coordinator, new_progress
from fedlearn.coordinator.server_noise_booking import ServerNoiseBooking
from fedlearn.data.dataset import Dataset
from fedlearn.flower.messenger import Messenger
from fedlearn.model.vector import layout_of
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.run.checkpoint import RunFolder
from fedlearn.simulation.engine import grid_of
from fedlearn.training.local import step_units

__all__ = ["Federation", "bound_of", "most_copies"]

_BOUND_OF_UPDATES = 0.3  # of a gradient, where a client's update is what is clipped
_MOST_CLIENTS = 16
_MOST_COPIES = 30
_EPSILON = 20.0  # of all rounds; shares of a larger one would be too small (docs/specification/privacy.md 3.3)


def bound_of(config: RunConfig) -> float:
    """How long a record's gradient, or the gradient that makes an update, may be."""
    private_records = MECHANISMS[config.privacy.mode].work.of_records
    bound = config.privacy.max_grad_norm if private_records else _BOUND_OF_UPDATES
    assert bound is not None
    return bound


@dataclass(frozen=True, slots=True)
class Federation:
    """One run over `records`. `scale` and `noise` are in grid units of the released sum: of one bound, and booked."""

    data: SimulatedData = field(repr=False)
    scale: float
    noise: float

    @classmethod
    def of(
        cls, config: RunConfig, like: SimulatedData, records: Dataset, *, rounds: int, coins: bool = False
    ) -> "Federation":
        """As the scenario, with at most 16 clients who are all asked; records are divided evenly.

        As many `records` as `most_copies` allows for each client are stored, one after the other and again.

        With `coins` a record is taken with probability 1/2, otherwise always.

        Raises:
            ConfigError: such a run cannot be planned.
        """
        smaller = _smaller(config)
        model = like.build_model(config)
        audited = changed(smaller, _changes(smaller, layout_of(model).dimension, rounds, coins=coins))
        audited = audited.found_in(config.source) if config.source else audited
        clients = audited.secure_aggregation.planned_cohort
        stored = records.take(np.arange(clients * most_copies(audited)) % len(records))
        data = SimulatedData(audited, stored, None, clients, partition_of(audited, stored, clients))
        scale, noise = _released(data)
        return cls(data, scale, noise)

    def releases(self, weights: Sequence[Vector], progress: Callable[[], None] | None = None) -> Vector:
        """What each round releases, (rounds, d) in grid units, when it is asked at each of these weights (d,)."""
        attacker = _Attacker(self.data, weights, progress)
        with tempfile.TemporaryDirectory(prefix="fedlearn-audit-") as place:
            folder = RunFolder(Path(place))
            folder.write("config.toml", self.data.config.to_toml().encode())
            with folder.locked() as held, grid_of(held, self.data) as grid:
                config, plan = self.data.config, self.data.plan
                roster = held.roster() if config.secure_aggregation.masking else None
                messenger = Messenger(grid, config, roster)
                started = new_progress(config)
                if grid.sums_at is None:
                    messenger.identify(self.data.population_size, started)
                with ServerNoiseBooking.of_run(held, config, plan) as server_noise:
                    coordinator = Coordinator(
                        config=config,
                        plan=plan,
                        layout=layout_of(self.data.build_model(config)),
                        population_size=self.data.population_size,
                        roster=roster,
                        server_noise=server_noise,
                        folder=held,
                        ask=messenger.ask,
                        sums_at=grid.sums_at,
                        optimizer=attacker,
                        evaluate=lambda _: None,
                        epsilon_after=lambda _: None,
                        on_round=None,
                        progress=started,
                        weights=weights[0],
                    )
                    coordinator.run(resumed=False)
        return np.array(attacker.released)


class _Attacker:
    """Implements `rounds.ServerOptimizer`: no optimizer, but whoever chooses the weights and reads the sums."""

    def __init__(self, data: SimulatedData, weights: Sequence[Vector], progress: Callable[[], None] | None) -> None:
        plan, mechanism = data.plan, MECHANISMS[data.config.privacy.mode]
        factor = mechanism.work.server_factor(data.config.training.learning_rate)
        self._units = float(plan.divisor) * 2**plan.scale_bits / factor
        self._weights, self._progress = weights, progress
        self.released: list[Vector] = []

    def step(self, round_number: int, weights: Vector, update: Vector) -> Vector:
        del weights
        self.released.append(np.rint(update * self._units))
        if self._progress is not None:
            self._progress()
        return self._weights[round_number % len(self._weights)]

    def state(self) -> dict[str, NDArray[np.float64]]:
        return {}

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        del state


def _smaller(config: RunConfig) -> RunConfig:
    """The same bounds and grid for at most 16 clients, in the same proportions."""
    aggregation, privacy = config.secure_aggregation, config.privacy
    cohort = min(aggregation.planned_cohort, _MOST_CLIENTS)
    share = Fraction(cohort, aggregation.planned_cohort)
    changes: dict[str, object] = {
        "planned_cohort": cohort,
        "min_survivors": math.ceil(aggregation.min_survivors * share),
        "cohorts": "rotation",
    }
    if aggregation.max_colluders is not None:
        changes["max_colluders"] = math.floor(aggregation.max_colluders * share)
    sections: Changes = {
        "secure_aggregation": changes,
        "data": {"population_size": cohort, "partition": "iid"},
        "runtime": {"engine": "in-process"},
    }
    if privacy.planned_records is not None:
        sections["privacy"] = {"planned_records": max(1, round(privacy.planned_records * share))}
    return changed(config, sections)


def _changes(config: RunConfig, dimension: int, rounds: int, *, coins: bool) -> Changes:
    privacy, mechanism = config.privacy, MECHANISMS[config.privacy.mode]
    training: dict[str, object] = {"local_steps": 1}
    if not mechanism.work.of_records:
        training |= {"batch_size": 1, "learning_rate": privacy.clipping_norm / _BOUND_OF_UPDATES}
    elif mechanism.noise.in_each_vector:
        longer = max(1.0, 2 * most_copies(config) / math.sqrt(dimension))
        training |= {"learning_rate": unclipped_rate(config, dimension) / longer}
    private: dict[str, object] = {"max_participations": rounds} if privacy.max_participations is not None else {}
    if mechanism.private:
        private |= {"target_epsilon": _EPSILON}
        if mechanism.samples_records:
            private["sampling_probability"] = "1/2" if coins else "1"
    return {"run": {"rounds": rounds, "spare_rounds": 0}, "training": training, "privacy": private}


def most_copies(config: RunConfig) -> int:
    """How often one record may lie at one client, so that the client's own clip leaves the sum alone."""
    if not MECHANISMS[config.privacy.mode].work.of_records:
        return 1
    return min(_MOST_COPIES, max(1, math.floor(0.9 * config.privacy.clipping_norm / bound_of(config))))


def _released(data: SimulatedData) -> tuple[float, float]:
    """Of the sum that leaves, in its grid units: how long one canary may be, and the noise's standard deviation."""
    config, plan = data.config, data.plan
    clients = config.secure_aggregation.planned_cohort
    noise = MECHANISMS[config.privacy.mode].noise
    if noise.in_shares:
        return plan.sensitivity, math.sqrt(clients) * plan.noise_std
    if not noise.in_each_vector:
        return (plan.sensitivity if noise.at_server else plan.clip_bound), plan.noise_std
    assert config.privacy.max_grad_norm is not None
    assert plan.planned_batch is not None
    _, step = step_units(
        learning_rate=config.training.learning_rate,
        max_grad_norm=config.privacy.max_grad_norm,
        planned_batch=plan.planned_batch,
    )
    unit = step * 2**plan.scale_bits
    return plan.sensitivity * unit, math.sqrt(clients) * plan.noise_std * unit
