"""The ServerApp: it runs the rounds of a run folder over whatever grid it is given."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlearn.errors import FedlearnError
from fedlearn.flower.sign_of_life import working
from fedlearn.run.checkpoint import DONE_FILE, RunFolder
from fedlearn.run.failure import record_failure

if TYPE_CHECKING:
    from fedlearn.coordinator.run_data import OnRound, RunData

__all__ = ["app", "make_server_app"]


def make_server_app(data: "RunData | None" = None, on_round: "OnRound | None" = None) -> ServerApp:
    """A ServerApp for the run folder whose `config.toml` the run config's key `config` names.

    `data` spares loading the data twice where agents and coordinator share a process.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        folder = RunFolder(Path(str(context.run_config["config"])).parent)
        deployed = bool(context.run_config.get("deployed"))
        with working(folder) if deployed else nullcontext(folder):
            # Only now, for it takes seconds to import: whoever waits for a sign of life must have it before.
            from fedlearn.flower.coordination import coordinate, load_data

            try:
                known = data or load_data(folder, deployed=deployed)
                coordinate(grid, folder, known, on_round, deployed=deployed)
            except FedlearnError as error:
                if data is None:  # in another process than whoever started the run
                    record_failure(folder, error)
                raise
            if deployed:
                folder.write(DONE_FILE, b"")

    return app


app = make_server_app()
