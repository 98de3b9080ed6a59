"""What a holder agreed to for a session: the configuration, its plan derived anew, and the local work it means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from fedlearn.config.run_config import Compile, RunConfig
from fedlearn.crypto.keystream import Entropy
from fedlearn.data.dataset import Dataset
from fedlearn.model.layout import Layout
from fedlearn.model.vector import layout_of
from fedlearn.privacy.calibration import Plan, plan
from fedlearn.privacy.discrete_gaussian import discrete_gaussian
from fedlearn.privacy.mechanisms import MECHANISMS, Mechanism
from fedlearn.privacy.request import PrivacyRequest
from fedlearn.round.client_work import work_for
from fedlearn.round.contribution import Contributor, LocalWork, StackedWork
from fedlearn.training.local import OnFailure, StepNoise

__all__ = ["Agreement", "agree", "plan_for"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Everything a holder derived by itself from the configuration it was sent."""

    config: RunConfig
    plan: Plan
    mechanism: Mechanism
    layout: Layout
    work: LocalWork = field(repr=False)
    stacked: StackedWork | None = field(repr=False)
    block: int  # clients who are trained together

    def contributor(self, records: Callable[[], Dataset], round_number: int, *, client: int) -> Contributor:
        """Client number `client` in one round."""
        return Contributor(records, (self.config.run.seed, round_number, client))

    def contributors(
        self, records: Callable[[int], Dataset], round_number: int, *, clients: Sequence[int]
    ) -> list[Contributor]:
        """Many clients in one round; `records` gives what a client holds, by its number."""
        return [self.contributor(partial(records, client), round_number, client=client) for client in clients]


def plan_for(config: RunConfig, *, dimension: int, population_size: int) -> Plan:
    """The run's plan: `privacy.calibration.plan` of what the configuration asks for.

    Raises:
        ConfigError: the plan is refused, with the reason.
    """
    return plan(PrivacyRequest.of(config, population_size=population_size, dimension=dimension))


def agree(
    config: RunConfig,
    model: nn.Module,
    *,
    population_size: int,
    device: str,
    entropy: Entropy,
    step_noise: StepNoise = discrete_gaussian,
    compiled: Compile = False,
    alone: bool = True,
    on_failure: OnFailure = lambda _: None,
) -> Agreement:
    """Derive the plan and the local work; `model` stays warm and is written in place from round to round.

    `step_noise` is exact; a simulation alone may put a faster one in its place (docs/specification/privacy.md 2.4).
    `alone` and `on_failure` are as in `work_for`; only a simulation says False, and counts failures.

    Raises:
        ConfigError: the plan is refused.
    """
    layout = layout_of(model)
    derived = plan_for(config, dimension=layout.dimension, population_size=population_size)
    mechanism = MECHANISMS[config.privacy.mode]
    work, stacked, block = work_for(
        config,
        derived,
        mechanism,
        model.to(device),
        device=device,
        entropy=entropy,
        step_noise=step_noise,
        compiled=compiled,
        alone=alone,
        on_failure=on_failure,
    )
    return Agreement(config, derived, mechanism, layout, work, stacked, block)
