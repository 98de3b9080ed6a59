"""What the coordinator asks of its own SuperLink: which nodes it knows, and which runs."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedlearn.errors import RunFailedError
from fedlearn.flower.own_socket import go_directly
from fedlearn.flower.programs import copy_bundle_sources

__all__ = ["Control", "Node"]


@dataclass(frozen=True, slots=True)
class Node:
    """A node that the SuperLink knows; `key` is its public key in PEM, `status` Flower's word."""

    node_id: int
    key: bytes
    status: str

    @property
    def is_online(self) -> bool:
        """Whether it was heard of lately."""
        return self.status == "online"

    @property
    def is_registered(self) -> bool:
        """Whether it may connect."""
        return self.status not in ("unregistered", "deleted")


class Control:
    """The SuperLink at `address` ("host:port"), which shows a certificate of `authority` (PEM).

    It is reached at `socket`, its own one; without one, as a SuperLink of Flower's own is, at its port.

    Raises (every method):
        RunFailedError: it does not answer, or refuses.
    """

    def __init__(self, address: str, authority: bytes, socket: Path | None = None) -> None:
        self._address = address
        go_directly(socket)
        self._client = ControlHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def nodes(self) -> list[Node]:
        """Every node it knows, those that were taken out too."""
        with self._asking("its nodes"):
            listed = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [Node(node.node_id, node.public_key, node.status) for node in listed]

    def register(self, key: bytes) -> None:
        """Let in the node with this public key (PEM)."""
        with self._asking("to let a node in"):
            self._client.RegisterNode(RegisterNodeRequest(public_key=key))

    def unregister(self, node_id: int) -> None:
        """Take a node out. Flower never takes its key again."""
        with self._asking("to take a node out"):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def submit(self, config: Path) -> int:
        """Start the run whose folder holds `config`; gives Flower's number for it."""
        with tempfile.TemporaryDirectory(prefix="fl-") as place:
            sources = Path(place) / "fedlearn-app"
            copy_bundle_sources(sources)
            content = build_fab_from_disk(sources)
        bundle = Fab(hashlib.sha256(content).hexdigest(), content, {})
        overrides = user_config_to_proto({"config": str(config), "deployed": True})
        request = StartRunRequest(fab=fab_to_proto(bundle), override_config=overrides)
        with self._asking("to start a run"):
            answer = self._client.StartRun(request)
            if not answer.HasField("run_id"):
                raise RunFailedError(f"the SuperLink at {self._address} did not take the run")
        return int(answer.run_id)

    def has_ended(self, number: int) -> bool:
        """Whether a run is over, as far as Flower knows: one that it says goes on may be dead."""
        with self._asking("a run's state"):
            runs = self._client.ListRuns(ListRunsRequest(run_id=number)).run_dict
        return number not in runs or runs[number].status.status == "finished"

    def stop(self, number: int) -> None:
        """End a run."""
        with self._asking("to end a run"):
            self._client.StopRun(StopRunRequest(run_id=number))

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            raise RunFailedError(f"the SuperLink at {self._address} refuses {what} ({code})") from None
        except (httpx.HTTPError, ValueError) as error:
            raise RunFailedError(
                f"the SuperLink at {self._address} does not answer when asked {what} ({type(error).__name__})"
            ) from None
