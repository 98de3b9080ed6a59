"""The same Flower ClientApp and FedAvg, unchanged, on fedlearn's in-process grid instead of Ray."""

import logging

from contestants.flower_client import app as client_app
from contestants.flower_server import announce, start_weights, strategy_of
from contestants.workload import given, started
from fedlearn.flower.in_process_grid import InProcessGrid


def main() -> None:
    """Run the rounds."""
    asked = given()
    announce(asked)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    grid = InProcessGrid(client_app, asked.workload.population)
    started()
    strategy_of(asked).start(grid=grid, initial_arrays=start_weights(), num_rounds=asked.rounds)


if __name__ == "__main__":
    main()
