"""fedlearn on the product's whole path, `RunConfig` to run folder, without test data. Options: section.key=value."""

import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from contestants.workload import FOLDER, given, round_done, started
from fedlearn import RunConfig
from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.coordinator.run_data import RoundResult
from fedlearn.run.checkpoint import RunFolder
from fedlearn.simulation.engine import run_in_process


def main() -> None:
    """Run the rounds; peers do not score their models either."""
    asked = given()
    overrides = [f"run.rounds={asked.rounds}", f"runtime.device={asked.device}", *asked.options]
    config = RunConfig.load(FOLDER / f"{asked.workload.name.lower()}.toml", overrides)
    data = replace(load_simulated_data(config), test=None)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.toml").write_bytes(config.to_toml().encode())
        started()
        run_in_process(RunFolder(Path(folder)), data, _report)


def _report(result: RoundResult) -> None:
    del result
    round_done()


if __name__ == "__main__":
    main()
