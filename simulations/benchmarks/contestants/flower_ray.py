"""Flower's own simulation engine with Ray: one actor a core."""

import os

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from contestants.flower_client import app as client_app
from contestants.flower_server import announce, start_weights, strategy_of
from contestants.workload import given, started


def main() -> None:
    """Run the rounds."""
    asked = given()
    announce(asked)
    actors = os.cpu_count() or 1
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        del context
        started()
        strategy_of(asked).start(grid=grid, initial_arrays=start_weights(), num_rounds=asked.rounds)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=asked.workload.population,
        backend_config={
            "init_args": {"num_cpus": actors, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0 if asked.device == "cpu" else 1 / actors},
        },
    )


if __name__ == "__main__":
    main()
