"""fedlearn: one model over data that may not move, and proof of what leaked.

The public names are resolved on first use (PEP 562): `import fedlearn` loads neither torch, flwr nor opacus.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedlearn.config.run_config import RunConfig
    from fedlearn.errors import BudgetExceededError, ConfigError, FedlearnError, RefusedError, RunFailedError
    from fedlearn.privacy.calibration import Plan
    from fedlearn.privacy.guarantee import Guarantee, PrivacyUnit
    from fedlearn.run.trained import TrainedModel, load_model
    from fedlearn.simulation.run import RunResult, plan, simulate

__all__ = [
    "BudgetExceededError",
    "ConfigError",
    "FedlearnError",
    "Guarantee",
    "Plan",
    "PrivacyUnit",
    "RefusedError",
    "RunConfig",
    "RunFailedError",
    "RunResult",
    "TrainedModel",
    "load_model",
    "plan",
    "simulate",
]

__version__ = "0.1.0"

_HOMES = {
    "RunConfig": "fedlearn.config.run_config",
    "Plan": "fedlearn.privacy.calibration",
    "Guarantee": "fedlearn.privacy.guarantee",
    "PrivacyUnit": "fedlearn.privacy.guarantee",
    "RunResult": "fedlearn.simulation.run",
    "TrainedModel": "fedlearn.run.trained",
    "load_model": "fedlearn.run.trained",
    "plan": "fedlearn.simulation.run",
    "simulate": "fedlearn.simulation.run",
}


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "fedlearn.errors")), name)
    raise AttributeError(f"module 'fedlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
