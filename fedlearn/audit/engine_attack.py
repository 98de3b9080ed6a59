"""Canaries that are stored records, sent through the whole engine of a run, and what must hold of what comes out.

Copies of one record are alone in a federation whose coordinator chooses the weights of each round so that the
record's gradient is too long, each time in another layer. What it may do to a release is known, so the rest is noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.chosen_weights import Gradient, long_gradients, random_weights, record_gradients
from fedlearn.audit.federation import Federation, bound_of
from fedlearn.audit.records import some_records
from fedlearn.audit.release_checks import Check, coin_checks, noise_checks, reach_check
from fedlearn.audit.setting import changed
from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.pooled_data import SimulatedData
from fedlearn.data.dataset import Dataset
from fedlearn.errors import RunFailedError
from fedlearn.privacy.mechanisms import MECHANISMS

__all__ = ["FALSE_ALARM_RATE", "ROUNDS", "EngineAttack", "attack_engine"]

FALSE_ALARM_RATE = 1e-4  # of all checks together

ROUNDS = 64
_FEWEST_ROUNDS = 17  # noise that comes again up to 16 releases later
_ENTRIES = 1 << 22  # of all releases that are kept
_CANDIDATES = 64
_COIN_RECORDS = 8


@dataclass(frozen=True, slots=True)
class EngineAttack:
    """What was found; `rounds` in each federation, `unprotected` whether mode `none` was found to protect nothing."""

    checks: tuple[Check, ...]
    rounds: int
    unprotected: bool
    reach: float  # the longest gradient, in bounds

    @property
    def failed(self) -> str | None:
        """What does not hold, in a sentence."""
        failed = [f"{check.name}: {check.found}" for check in self.checks if not check.passed]
        return "; ".join(failed) or None


def attack_engine(
    config: RunConfig, *, rounds: int = ROUNDS, progress: Callable[[int, int], None] | None = None
) -> EngineAttack:
    """Attack the engine of the run `config`, masked and summed where it is masked; mode `none` is the control.

    A federation is asked for at most `rounds` releases, for fewer of a large model, and for no fewer than 17.

    Guarantees:
        an honest engine fails a check with a probability of at most `FALSE_ALARM_RATE`, all checks together.

    Raises:
        ConfigError: the data cannot be used, or such federations cannot be planned.
    """
    data = some_records(config, _CANDIDATES)
    model = data.build_model(config)
    canary = data.train.take(np.zeros(1, dtype=np.int64))
    gradients = long_gradients(model, canary, bound=bound_of(config))
    dimension = len(gradients[0].weights)
    rounds = max(_FEWEST_ROUNDS, min(rounds, _ENTRIES // dimension))
    engines = [True, False] if config.secure_aggregation.masking else [False]
    with_coins = MECHANISMS[config.privacy.mode].samples_records
    steps = _Steps(progress, rounds * (len(engines) * (1 + with_coins) + 1))
    each = FALSE_ALARM_RATE / (len(engines) * (1 + with_coins))
    checks: list[Check] = []
    for masking in engines:
        engine = changed(config, {"secure_aggregation": {"masking": masking}})
        engine = engine.found_in(config.source) if config.source else engine
        name = "masked" if masking else "summed"
        try:
            checks += _named(name, _of_canary(engine, data, canary, gradients, rounds, steps, failure=each))
            if with_coins:
                checks += _named(name, _of_coins(engine, data, rounds, steps, failure=each))
        except RunFailedError as error:
            checks.append(Check(f"{name}: rounds", False, f"the rounds did not come to their end: {error}", 0.0))
    bare = changed(config, {"privacy": {"mode": "none"}, "training": {"local_steps": 1, "batch_size": 1}})
    bare = changed(bare, {"secure_aggregation": {"masking": False}})
    bare = bare.found_in(config.source) if config.source else bare
    longer = long_gradients(model, canary, bound=bound_of(bare))
    control = _of_canary(bare, data, canary, longer, rounds, steps, failure=each)
    return EngineAttack(
        checks=tuple(checks),
        rounds=rounds,
        unprotected=not all(check.passed for check in control if check.name != "reach"),
        reach=max(gradient.length for gradient in gradients) / bound_of(config),
    )


def _of_canary(
    config: RunConfig,
    data: SimulatedData,
    canary: Dataset,
    gradients: list[Gradient],
    rounds: int,
    steps: "_Steps",
    *,
    failure: float,
) -> list[Check]:
    """One record alone, at other weights from round to round."""
    federation = Federation.of(config, data, canary, rounds=rounds)
    asked = [gradients[number % len(gradients)] for number in range(rounds)]
    released = federation.releases([one.weights for one in asked], steps)
    bound, copies = bound_of(config), len(federation.data.train)
    whole = federation.scale * copies
    noise = released - np.array([_sign(config) * whole / bound * one.clipped(bound) for one in asked])
    means = [released[number :: len(gradients)].mean(axis=0) for number in range(len(gradients))]
    moved = [float(np.linalg.norm(one.along(mean))) / whole for one, mean in zip(gradients, means, strict=True)]
    spread = federation.noise / whole / np.sqrt(rounds // len(gradients))
    return [
        reach_check(np.array(moved), spread, len(gradients[0].starts), failure=failure / 2),
        *noise_checks(noise / max(federation.noise, 1.0), failure=failure / 2),
    ]


def _of_coins(config: RunConfig, data: SimulatedData, rounds: int, steps: "_Steps", *, failure: float) -> list[Check]:
    """Copies of several records, each taken with probability 1/2: the sums show how many of which were taken."""
    bound, model = bound_of(config), data.build_model(config)
    weights = random_weights(model, 0)
    every = np.array([one.clipped(bound) for one in record_gradients(model, weights, data.train)])
    chosen = _apart(every / bound)
    federation = Federation.of(config, data, data.train.take(chosen), rounds=rounds, coins=True)
    decode = np.linalg.pinv(_sign(config) * federation.scale / bound * every[chosen])
    released = federation.releases([weights] * rounds, steps)
    stored = len(federation.data.train)
    copies = np.array([len(range(number, stored, len(chosen))) for number in range(len(chosen))])
    blur = federation.noise * float(np.linalg.norm(decode, 2))
    return coin_checks(released @ decode, copies, blur, failure=failure)


def _apart(directions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Records whose gradients, the rows, are least alike."""
    from scipy.linalg import qr

    order = qr(directions.T, mode="economic", pivoting=True)[2]
    return np.sort(order[: min(_COIN_RECORDS, directions.shape[1] // 2)]).astype(np.int64)


def _sign(config: RunConfig) -> int:
    """An update points where the gradient does not."""
    return 1 if MECHANISMS[config.privacy.mode].work.server_factor(1.0) < 0 else -1


def _named(engine: str, checks: list[Check]) -> list[Check]:
    return [Check(f"{engine}: {one.name}", one.passed, one.found, one.false_alarm_rate) for one in checks]


class _Steps:
    """Counts rounds for a bar."""

    def __init__(self, progress: Callable[[int, int], None] | None, rounds: int) -> None:
        self._progress, self._rounds, self._done = progress, rounds, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._rounds)
