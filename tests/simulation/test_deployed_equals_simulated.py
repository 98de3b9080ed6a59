"""One run twice: simulated, and with four deployed agents that each hold a file of their own. The models are equal."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedlearn import simulate
from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.attesting import attestations_in
from fedlearn.crypto.signatures import SigningKey
from fedlearn.data import load_dataset
from fedlearn.data.dataset import DataOptions, Dataset
from fedlearn.flower.client_app import make_client_app
from fedlearn.flower.in_process_grid import InProcessGrid
from fedlearn.flower.server_app import make_server_app
from fedlearn.holder.deployed import DeployedAgent
from fedlearn.host.durable import write_whole
from fedlearn.policy.roster import Roster, RosterEntry
from fedlearn.run.checkpoint import RunFolder
from tests.holder_files import FOUR, POLICY, coordinator, table_source

COLUMNS = [f"p{pixel}" for pixel in range(64)]


def write_csv(path: Path, records: Dataset, *, clients: list[str] | None = None) -> None:
    pixels = ((records.features[:, 0] + 0.3) * 16).round().astype(int).reshape(len(records), 64)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "digit", *(["who"] if clients else [])])
        for row, label, *who in zip(pixels, records.labels, *([clients] if clients else []), strict=True):
            writer.writerow([*row, label, *who])


def scenario(folder: Path, *lines: str) -> RunConfig:
    """Digits as a table, mode `none`: nothing random but what the seed decides."""
    text = RunConfig.load("digits", [*FOUR, "privacy.mode=none", "run.rounds=3"]).to_toml()
    classes = str([[str(digit)] for digit in range(10)]).replace("'", '"')
    table = [
        "[data]",
        'dataset = "csv"',
        'label = "digit"',
        f"classes = {classes}",
        f'public_test = "{folder}/test.csv"',
    ]
    columns = [f"\n[data.columns.{name}]\nlow = 0.0\nhigh = 16.0" for name in COLUMNS]
    before, _, after = text.partition("[data]")
    rest = after[after.index("[model]") :]
    path = folder / "run.toml"
    path.write_text("\n".join([before, *table, *lines, *columns, "", rest]))
    return RunConfig.load(path)


def deploy(folder: Path, member: int, roster: Roster, key: bytes, config: RunConfig) -> DeployedAgent:
    text = POLICY.format(client_id=roster.members[member].client_id.hex(), roster_sha256=roster.sha256.hex())
    text = text.replace('source = "digits"', f"source = {table_source(f'{folder}/own-{member}.csv', config)}").replace(
        'modes = ["record-distributed"]', 'modes = ["none"]'
    )
    home = folder / f"home-{member}"
    home.mkdir()
    write_whole(home / "identity.key", key, mode=0o600)
    (home / "roster.toml").write_bytes(roster.content)
    (home / "client.toml").write_text(text)
    return DeployedAgent(home / "client.toml")


def run_over(agents: Sequence[Any], path: Path, config: RunConfig, roster: Roster) -> RunFolder:
    """One run over agents that hold their own files, in this process; gives its folder."""
    folder = RunFolder(path)
    folder.path.mkdir()
    folder.write("config.toml", config.to_toml().encode())
    folder.write("roster.toml", roster.content)

    def carry(context: Context, stage: str, frame: bytes, seconds: float) -> bytes:
        return agents[int(context.node_config["partition-id"])].handle(0, stage, frame)

    grid = InProcessGrid(make_client_app(carry), len(agents))
    run_config: dict[str, bool | float | int | str] = {"config": str(folder.file("config.toml")), "deployed": True}
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    make_server_app()(grid=grid, context=context)
    return folder


@pytest.mark.lengthy
def test_mode_none_gives_the_same_model_to_the_bit_simulated_and_deployed(tmp_path):
    loaded = load_dataset(DataOptions(dataset="digits"))
    assert loaded.test is not None
    owners = [index % 4 for index in range(len(loaded.train))]
    write_csv(tmp_path / "all.csv", loaded.train, clients=[f"client-{owner}" for owner in owners])
    write_csv(tmp_path / "test.csv", loaded.test)
    for member in range(4):
        write_csv(tmp_path / f"own-{member}.csv", loaded.train.take(np.flatnonzero(np.array(owners) == member)))
    where = ('client_column = "who"', f'path = "{tmp_path}/all.csv"', 'partition = "natural"')
    simulated = simulate(scenario(tmp_path, *where), output=tmp_path / "simulated")

    # The ids of simulated clients, for they order batches.
    keys = [bytes([100 + member]) * 32 for member in range(4)]
    members = [RosterEntry(f"m{n}", "", n.to_bytes(16, "big"), SigningKey(key).public) for n, key in enumerate(keys)]
    roster = Roster.of(coordinator(), tuple(members))
    deployed = scenario(tmp_path)
    agents = [deploy(tmp_path, member, roster, key, deployed) for member, key in enumerate(keys)]
    folder = run_over(agents, tmp_path / "deployed", deployed, roster)

    here, there = RunFolder(simulated.run_dir).load_checkpoint(), folder.load_checkpoint()
    assert here is not None
    assert there is not None
    np.testing.assert_array_equal(there[1], here[1])
    assert folder.lines("metrics.jsonl")[-1]["accuracy"] == pytest.approx(simulated.accuracy)
    assert len(attestations_in(folder)) == 4
    for agent in agents:
        agent.close()
