"""What a holder's policy would say to a run, line by line, before anybody runs it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedlearn.agent.agreement import plan_for
from fedlearn.agent.simulated import data_options
from fedlearn.config import RunConfig
from fedlearn.data import load_dataset
from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.holder_policy import HolderPolicy
from fedlearn.models import build_model, model_features
from fedlearn.policy import Verdict
from fedlearn.vector import layout_of

__all__ = ["PolicyCheck", "check_policy"]


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """The verdict of each limit, for one data set of the policy."""

    dataset_id: str
    verdicts: tuple[Verdict, ...]

    @property
    def refused(self) -> tuple[Verdict, ...]:
        """Those that refuse the run."""
        return tuple(verdict for verdict in self.verdicts if not verdict.accepted)

    def as_dict(self) -> dict[str, object]:
        """As JSON has it."""
        lines = [
            {"limit": v.limit, "policy": v.policy, "run": v.run, "accepted": v.accepted, "reason": _reason(v)}
            for v in self.verdicts
        ]
        return {"accepted": not self.refused, "dataset": self.dataset_id, "lines": lines}


def check_policy(policy_path: Path, run: str | Path, *, dimension: int | None = None) -> PolicyCheck:
    """Judge the run in a TOML file, or a shipped scenario, by the policy and its accepted roster.

    The data set is the one whose source is of the kind that the run asks for. `dimension` spares a look at its records,
    of which the shape alone is used.

    Raises:
        ConfigError: a file is broken, or the model's dimension cannot be known without `dimension`.
        RefusedError: the policy's roster is not the accepted one, or no data set is meant for such a run.
    """
    policy = HolderPolicy.load(policy_path)
    config = RunConfig.load(run)
    name = policy.dataset_of(config)
    limits = policy.for_dataset(name)
    early = limits.judge(config)
    if not all(verdict.accepted for verdict in early if verdict.limit == "model"):
        return PolicyCheck(name, early)  # an agent would not build that model
    size = dimension or _dimension(policy, name, config)
    try:
        plan = plan_for(config, dimension=size, population_size=len(policy.roster.members))
    except ConfigError as error:
        return PolicyCheck(name, (*early, Verdict("plan", "a plan that holds", f"refused: {error}", accepted=False)))
    return PolicyCheck(name, limits.judge(config, plan))


def _reason(verdict: Verdict) -> str | None:
    return None if verdict.accepted else verdict.sentence


def _dimension(policy: HolderPolicy, name: str, config: RunConfig) -> int:
    section = policy.dataset[name]
    path = str(policy.path.parent / section.source) if section.kind != section.source else None
    options = replace(data_options(config), dataset=section.kind, path=path, public_test=None, client_column=None)
    try:
        records = load_dataset(options).train
        # A record of zeros has the same shape: nothing is computed from the holder's own.
        blank = Dataset(np.zeros((1, *records.input_shape), np.float32), np.zeros(1, np.int64), records.classes)
        seen = model_features(config.model.name, options=config.model.options, dataset=blank)
        model = build_model(
            config.model.name,
            input_shape=seen.input_shape,
            classes=len(records.classes),
            options=config.model.options,
            seed=0,
            search=[policy.path.parent],  # never the run's own folder: that may be the coordinator's code
        )
    except ConfigError as error:
        raise ConfigError(f"the size of the model cannot be known: {error}; state it with --dimension N") from None
    return layout_of(model).dimension
