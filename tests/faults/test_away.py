"""Holders that are away, or refuse, before anything is asked of their records: time passes and nothing is spent."""

from pathlib import Path

import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.errors import RunFailedError
from fedlearn.holder.deployed import PAUSED_FILE, DeployedAgent
from tests.holder_files import FOUR, small_roster, write_policy
from tests.simulation.test_deployed_equals_simulated import run_over

CONFIG = RunConfig.load("digits", [*FOUR, "run.rounds=1", "run.spare_rounds=0", "privacy.max_participations=1"])


@pytest.fixture
def policies(tmp_path: Path) -> list[Path]:
    return [write_policy(tmp_path / str(member), member=member) for member in range(4)]


class Away:
    """An agent whose node is not reached with the first `times` configurations."""

    def __init__(self, policy: Path, times: int) -> None:
        self.agent, self.times = DeployedAgent(policy), times

    def handle(self, client: int, stage: str, request: bytes) -> bytes:
        if stage == "advertise" and self.times:
            self.times -= 1
            raise ConnectionError("no network")
        return self.agent.handle(client, stage, request)


def test_a_deployed_run_outlasts_a_network_that_is_away_for_many_attempts(policies, tmp_path):
    agents = [Away(policy, times) for policy, times in zip(policies, (20, 20, 0, 20), strict=True)]
    folder = run_over(agents, tmp_path / "run", CONFIG, small_roster())
    (event,) = folder.lines("events.jsonl")
    assert (event["round"], event["attempt"], event["survivors"]) == (1, 0, 4), "holders answer few attempts of a round"
    for away in agents:
        assert len(away.agent.ledger.events("digits")) == 1
        away.agent.close()


def test_a_run_that_its_holders_refuse_ends_soon_and_says_so(policies, tmp_path):
    agents = [DeployedAgent(policy) for policy in policies]
    for policy in policies:
        policy.with_name(PAUSED_FILE).touch()
    told = r"refused by 4 of 4; 4 attempts ended so, before a vector was asked for; .* its own log"
    with pytest.raises(RunFailedError, match=told):
        run_over(agents, tmp_path / "run", CONFIG, small_roster())
    for agent in agents:
        assert agent.ledger.events("digits") == []
        agent.close()


class Refusing:
    """An agent that loses its sessions before it is asked for a vector: its holder's agent was started again."""

    def __init__(self, policy: Path) -> None:
        self.policy, self.agent = policy, DeployedAgent(policy)

    def handle(self, client: int, stage: str, request: bytes) -> bytes:
        if stage == "masked":
            self.agent.close()
            self.agent = DeployedAgent(self.policy)
        return self.agent.handle(client, stage, request)


def test_an_attempt_that_ends_after_vectors_were_asked_for_says_how_many_refused_and_where_reasons_stand(
    policies, tmp_path
):
    agents = [Refusing(policies[0]), Refusing(policies[1]), *map(DeployedAgent, policies[2:])]
    told = (
        r"2 clients sent a vector; .*; refused by 2 of 4; why .* its own log .*; no spare round is left, and what was "
        "sent counts as spent"
    )
    with pytest.raises(RunFailedError, match=told):
        run_over(agents, tmp_path / "run", CONFIG, small_roster())
    for agent in agents:
        (agent.agent if isinstance(agent, Refusing) else agent).close()
