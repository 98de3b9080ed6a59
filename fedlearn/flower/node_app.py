"""The ClientApp of a node: it carries bytes between Flower and an agent, and imports neither torch nor the agents.

What Flower runs here came from the coordinator, so nothing that goes wrong may be told: an exception's text would reach
the server.
"""

import threading
from pathlib import Path
from typing import Final

from flwr.app import Context

from fedlearn.crypto.labels import REFUSAL
from fedlearn.flower.client_app import make_client_app
from fedlearn.flower.records import MOST_MESSAGE_BYTES
from fedlearn.holder.socket import ask

__all__ = ["ADDRESS_FILE", "SOCKET_KEY", "app"]

# In the run folder of a simulation, while a run is on: the path of the socket behind which its agents are.
ADDRESS_FILE: Final = "agents.address"
# In the node's own configuration, in a deployment: the path of the socket of its holder's agent.
SOCKET_KEY: Final = "agent-socket"


def _carry(context: Context, stage: str, frame: bytes, seconds: float) -> bytes:
    """The agent's reply; the constant refusal for whatever goes wrong, is too long, or takes longer than `seconds`.

    The wait is in a thread of its own: it ends in time, whatever the agent or the socket does.
    """
    del stage  # the frame names it as well, and the agents go by the frame
    replies: list[bytes] = []

    def wait() -> None:
        try:
            replies.append(ask(*_address(context), frame, seconds=seconds))
        except BaseException:  # none of it may be told
            replies.append(REFUSAL)

    try:
        if len(frame) > MOST_MESSAGE_BYTES:
            return REFUSAL
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(seconds)
        return replies[0] if len(replies[0]) <= MOST_MESSAGE_BYTES else REFUSAL
    except BaseException:
        return REFUSAL


def _address(context: Context) -> tuple[Path, int]:
    """The agents' socket, and the number of the one that is meant."""
    if SOCKET_KEY in context.node_config:
        return Path(str(context.node_config[SOCKET_KEY])), 0
    run_folder = Path(str(context.run_config["config"])).parent
    address = (run_folder / ADDRESS_FILE).read_text(encoding="utf-8")
    return Path(address), int(context.node_config["partition-id"])


app = make_client_app(_carry)
