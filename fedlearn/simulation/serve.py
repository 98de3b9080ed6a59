"""`python -m fedlearn.simulation.serve RUN_FOLDER SOCKET`: the agents of a simulation in a process of their own.

It serves until its standard input closes, so it goes when whoever started it goes.
"""

import logging
import sys
from pathlib import Path

from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.holder.socket import AgentServer
from fedlearn.run.checkpoint import load_run
from fedlearn.simulation.simulated import AgentPool

__all__ = ["main"]


def main(run_folder: Path, socket_path: Path) -> None:
    """Serve the agents of the run in `run_folder` at `socket_path`.

    Raises:
        ConfigError: the run's data or plan cannot be used.
    """
    data = load_simulated_data(load_run(run_folder / "config.toml"))
    pool = AgentPool(data, run_folder)
    try:
        with AgentServer(socket_path, pool.handle, clients=data.population_size):
            sys.stdin.buffer.read()
    finally:
        pool.close()


if __name__ == "__main__":
    # The reason of a refusal is told to the holder alone: here, in the log of whoever runs the simulation.
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
