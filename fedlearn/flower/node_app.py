"""The ClientApp of a node: it carries bytes between Flower and the agents, and imports neither torch nor the agents."""

from pathlib import Path

from flwr.app import Context

from fedlearn.agent.socket import ask
from fedlearn.flower.client_app import make_client_app

__all__ = ["ADDRESS_FILE", "app"]

# In the run folder, while a run is on: the path of the socket behind which the simulated agents are.
ADDRESS_FILE = "agents.address"


def _carry_to_simulated_agents(context: Context, stage: str, frame: bytes) -> bytes:
    del stage  # the frame names it as well, and the agents go by the frame
    run_folder = Path(str(context.run_config["config"])).parent
    address = (run_folder / ADDRESS_FILE).read_text(encoding="utf-8")
    return ask(Path(address), int(context.node_config["partition-id"]), frame)


app = make_client_app(_carry_to_simulated_agents)
