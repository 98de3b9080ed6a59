"""Flower's own strategies as server optimizers: each is fed with the one aggregated reply of a round."""

import inspect
from collections.abc import Mapping
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from numpy.typing import NDArray

from fedlearn.errors import ConfigError
from fedlearn.flower.in_process_grid import make_message
from fedlearn.host.quiet import quiet
from fedlearn.model.layout import Layout
from fedlearn.privacy.clipping import Vector
from fedlearn.wording import did_you_mean

__all__ = ["STRATEGIES", "StrategyOptimizer", "check_options"]

STRATEGIES: dict[str, type[FedAvg]] = {
    "FedAdagrad": FedAdagrad,
    "FedAdam": FedAdam,
    "FedAvg": FedAvg,
    "FedAvgM": FedAvgM,
    "FedYogi": FedYogi,
}

_DECAYS = ("server_momentum", "beta_1", "beta_2")
_MOMENTS = ("m_t", "v_t")


class StrategyOptimizer:
    """One of `STRATEGIES`, float64 in and out, tensors in the order of `layout`.

    Raises:
        ConfigError: an option that the strategy does not have.
    """

    def __init__(self, name: str, options: Mapping[str, float], layout: Layout) -> None:
        check_options(name, options)
        self._layout = layout
        with quiet("flwr"):
            self._strategy = STRATEGIES[name](fraction_train=0.0, fraction_evaluate=0.0, **options)  # type: ignore[arg-type]  # options are floats, checked above

    def step(self, round_number: int, weights: Vector, update: Vector) -> Vector:
        """The weights after the strategy took `weights + update` as the clients' mean; all (d,) float64."""
        with quiet("flwr"):
            before = self._arrays(weights)
            self._strategy.configure_train(round_number, before, ConfigRecord(), cast(Grid, None))
            content = RecordDict(
                {"arrays": self._arrays(weights + update), "metrics": MetricRecord({"num-examples": 1.0})}
            )
            after, _ = self._strategy.aggregate_train(round_number, [make_message(content, "train", 0, "")])
        assert after is not None
        return self._layout.join({name: array.numpy() for name, array in after.items()})

    def state(self) -> dict[str, NDArray[np.float64]]:
        """The strategy's moments, by name and tensor."""
        state: dict[str, NDArray[np.float64]] = {}
        momentum = getattr(self._strategy, "momentum_vector", None) or []
        state.update({f"momentum_vector/{i}": np.asarray(part) for i, part in enumerate(momentum)})
        for moment in _MOMENTS:
            for name, part in (getattr(self._strategy, moment, None) or {}).items():
                state[f"{moment}/{name}"] = np.asarray(part)
        return state

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Take up what `state` gave."""
        momentum = {int(key.partition("/")[2]): part for key, part in state.items() if key.startswith("momentum")}
        if momentum:
            self._strategy.momentum_vector = [momentum[i] for i in sorted(momentum)]  # type: ignore[attr-defined]  # FedAvgM's
        for moment in _MOMENTS:
            parts = {key.partition("/")[2]: part for key, part in state.items() if key.startswith(f"{moment}/")}
            if parts:
                setattr(self._strategy, moment, parts)

    def _arrays(self, vector: Vector) -> ArrayRecord:
        return ArrayRecord(
            {name: Array(np.ascontiguousarray(part)) for name, part in self._layout.split(vector).items()}
        )


def check_options(name: str, options: Mapping[str, float]) -> None:
    """Only what a strategy adds to FedAvg's own parameters is an option: the rest is decided by the run.

    Raises:
        ConfigError: an option that the strategy does not have, or whose value makes it diverge or divide by zero.
    """
    common = inspect.signature(FedAvg.__init__).parameters
    own = [option for option in inspect.signature(STRATEGIES[name].__init__).parameters if option not in common]
    for option, value in options.items():
        if option not in own:
            hint = did_you_mean(option, own)
            meant = f"; {hint}" if hint else ""
            expected = f"expected one of {', '.join(own)}" if own else f"{name} takes none"
            raise ConfigError(f"training.strategy_options.{option} is not an option of {name}; {expected}{meant}")
        if option in _DECAYS and not 0 <= value < 1:
            raise ConfigError(f"training.strategy_options.{option} is {value}; expected at least 0 and below 1")
        if option not in _DECAYS and value <= 0:
            raise ConfigError(f"training.strategy_options.{option} is {value}; expected a number above 0")
