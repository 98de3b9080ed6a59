"""What a holder's policy would say to a run, line by line, before anybody runs it; and the pin of a run's schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlearn.config.run_config import RunConfig
from fedlearn.config.schema import TABLES, schema_of, schema_sha256
from fedlearn.errors import ConfigError
from fedlearn.host.durable import write_whole
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.policy.policy_file import with_value
from fedlearn.policy.run_policy import Verdict
from fedlearn.privacy.calibration import Plan
from fedlearn.round.agreement import plan_for
from fedlearn.round.source import Source, model_dimension

__all__ = ["AskedSchema", "PolicyCheck", "check_policy"]


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """The verdict of each limit, for one data set of the policy; `plan` is None where there can be none."""

    dataset_id: str
    verdicts: tuple[Verdict, ...]
    plan: Plan | None = None

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

    The data set is the one whose source is of the kind that the run asks for. `dimension` spares
    building its model; a holder's file is not opened.

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
    return PolicyCheck(name, limits.judge(config, plan), plan)


@dataclass(frozen=True, slots=True)
class AskedSchema:
    """How a run would have the rows of a data set read; `sha256` is what the policy pins."""

    policy_path: Path
    dataset_id: str
    schema: Mapping[str, object]
    sha256: str

    @classmethod
    def of(cls, policy_path: Path, run: str | Path) -> Self:
        """What a run, in a TOML file, asks of the data set of the policy that it is about.

        Raises:
            ConfigError: a file is broken, or the run is about a data set that ships, which has its own schema.
            RefusedError: no data set of the policy is meant.
        """
        policy, config = HolderPolicy.read(policy_path), RunConfig.load(run)
        if config.data.dataset not in TABLES:
            raise ConfigError(
                f"{run}: data.dataset is {config.data.dataset}, which has its own schema: nothing to accept"
            )
        return cls(policy_path, policy.dataset_of(config), schema_of(config.data), schema_sha256(config.data))

    def pin(self) -> None:
        """Write the hash into the policy; every other byte stays.

        Raises:
            ConfigError: the file cannot be written, or its section does not stand on a line of its own.
        """
        section = f"dataset.{self.dataset_id}"
        content = with_value(
            self.policy_path.read_bytes(), section, "schema_sha256", self.sha256, place=self.policy_path
        )
        path = self.policy_path.resolve()
        try:
            write_whole(path, content, mode=path.stat().st_mode & 0o777)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _reason(verdict: Verdict) -> str | None:
    return None if verdict.accepted else verdict.sentence


def _dimension(policy: HolderPolicy, name: str, config: RunConfig) -> int:
    try:
        # Never the run's own folder: that may be the coordinator's code.
        like = Source.of(policy, name).blank(config)
        return model_dimension(config, like, search=[policy.path.parent])
    except ConfigError as error:
        raise ConfigError(f"the size of the model cannot be known: {error}; state it with --dimension N") from None
