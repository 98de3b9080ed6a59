"""Four agents, a coordinator that is in a hurry, and a network in between."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.coordinator.run_data import RoundResult
from fedlearn.flower.client_app import make_client_app
from fedlearn.flower.messenger import Messenger, Pace
from fedlearn.flower.server_app import make_server_app
from fedlearn.run.checkpoint import RunFolder
from fedlearn.simulation.simulated import AgentPool
from tests.faults.lossy_grid import FateOf, LossyGrid
from tests.holder_files import FOUR

HURRY = Pace(poll=0.005, polls_a_second=2000, again=0.05, patience=0.0)


class Run:
    """One run over a lossy grid; `grid` and `pool` show what went over the network and what was booked."""

    def __init__(self, config: RunConfig, folder: Path, fate_of: FateOf) -> None:
        folder.mkdir()
        self.folder = RunFolder(folder)
        (folder / "config.toml").write_text(config.to_toml())
        self.data = load_simulated_data(config)
        self.pool = AgentPool(self.data, folder)
        for client in range(4):
            self.pool.holder(client)  # before threads ask for the same one

        def carry(context: Context, stage: str, frame: bytes, seconds: float) -> bytes:
            return self.pool.handle(int(context.node_config["partition-id"]), stage, frame)

        self.grid = LossyGrid(make_client_app(carry), 4, fate_of)
        self.results: list[RoundResult] = []

    def go(self) -> list[RoundResult]:
        context = Context(
            run_id=0,
            node_id=0,
            node_config={},
            state=RecordDict(),
            run_config={"config": str(self.folder.file("config.toml"))},
        )
        make_server_app(self.data, self.results.append)(grid=self.grid, context=context)
        return self.results

    def releases(self) -> list[int]:
        """How many releases each client booked."""
        return [len(self.pool.ledger.events(f"client-{client}")) for client in range(4)]


@pytest.fixture
def lossy_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    monkeypatch.setattr("fedlearn.flower.coordination.Messenger", partial(Messenger, pace=HURRY))
    runs: list[Run] = []

    def make(fate_of: FateOf, *overrides: str, rounds: int = 1) -> Run:
        settings = (*FOUR, f"run.rounds={rounds}", "run.spare_rounds=2", f"privacy.max_participations={rounds + 2}")
        seconds = "secure_aggregation.stage_seconds=[2, 2, 2, 2, 2]"
        config = RunConfig.load("digits", [*settings, seconds, *overrides])
        runs.append(Run(config, tmp_path / f"run-{len(runs)}", fate_of))
        return runs[-1]

    yield make
    for run in runs:
        run.grid.close()
        run.pool.close()
