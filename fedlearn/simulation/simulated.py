"""The data holders of a simulation: a pool of agents over one partitioned data set, one ledger in the run folder."""

import hmac
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fedlearn.coordinator.pooled_data import SimulatedData
from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.crypto.signatures import SigningKey
from fedlearn.data.dataset import Dataset
from fedlearn.holder.context import Agent, Holder, HolderContext, handle_many
from fedlearn.holder.masked_agent import MaskedAgent, handle_many_masked
from fedlearn.holder.pending_replies import Contributed
from fedlearn.holder.positions import Positions
from fedlearn.host.durable import write_whole
from fedlearn.ledger import Ledger
from fedlearn.policy.roster import SIMULATED_COORDINATOR, Roster, RosterEntry
from fedlearn.policy.run_policy import Policy
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import Lanes
from fedlearn.round.agreement import Agreement
from fedlearn.round.contribution import Contributor
from fedlearn.round.tally import Tally
from fedlearn.run.checkpoint import ROSTER_FILE, RunFolder
from fedlearn.secagg.stages import Member
from fedlearn.simulation.processes import worker_count
from fedlearn.simulation.row_workers import RowWorkers
from fedlearn.simulation.worker_pool import SeededEntropy
from fedlearn.training.device import pick_device
from fedlearn.training.local import OnFailure
from fedlearn.training.stacked.box_muller import box_muller

__all__ = [
    "AgentPool",
    "Holdings",
    "coordinator_key",
    "holder_context_of",
]

_KEY_FILE = "identities.key"
_FEW = 64  # clients whose copies are kept


class AgentPool:
    """All holders of a simulation in one process; an agent exists from the first message to it."""

    def __init__(self, data: SimulatedData, folder: Path, *, entropy: Entropy | None = None) -> None:
        """`entropy`, for noise and coins, is the operating system's unless a test brings its own."""
        self._holdings = Holdings(data)
        workers = worker_count(data.config.runtime.workers, pick_device(data.config.runtime.device))
        self._pool: RowWorkers | None = None
        coins = SeededEntropy()
        self._tally, self._folder = Tally(), folder
        self._context = holder_context_of(
            data, folder, entropy=coins if workers > 1 else entropy, on_failure=self._tally.add
        )
        if workers > 1:
            seeds = entropy or stream_entropy(os.urandom)
            self._pool = RowWorkers(workers, self._holdings.records, coins=coins, entropy=seeds)
            self._context.contributed = self._pool.contributed
        self._context.contributed = self._noting(self._context.contributed)
        masking = data.config.secure_aggregation.masking
        identities = _identities(folder, data.population_size) if masking else None
        self._roster = RunFolder(folder).roster() if masking else None
        self._public_keys = self._roster.keys if self._roster else {}  # one mapping for all, not one a client
        self._identities = identities or []
        self._plain: dict[int, Agent] = {}
        self._masked: dict[int, MaskedAgent] = {}
        accounts = [_dataset_id(client) for client in range(data.population_size)]
        self._context.open_account(accounts, order=data.plan.ledger_order)

    @property
    def policy(self) -> Policy:
        """What all holders accept."""
        return self._context.policy

    @property
    def ledger(self) -> Ledger:
        """The one ledger of all holders."""
        return self._context.ledger

    @property
    def roster(self) -> Roster | None:
        """Who takes part; None where masking is off."""
        return self._roster

    def close(self) -> None:
        """Let the workers go, and close the ledger."""
        if self._pool is not None:
            self._pool.close()
        self._context.close()

    def holder(self, client: int) -> Holder:
        """Who client number `client` is, and what it holds."""
        return self._masked_agent(client).holder if self._roster else self._plain_agent(client).holder

    def handle(self, client: int, stage: str, request: bytes) -> bytes:
        """One client's reply to one frame."""
        return self.handle_many(stage, {client: request})[0]

    def handle_many(self, stage: str, requests: Mapping[int, bytes]) -> Sequence[bytes]:
        """The replies of a whole cohort, in the order of `requests`."""
        bodies = list(requests.values())
        if self._roster:
            return handle_many_masked([self._masked_agent(client) for client in requests], stage, bodies)
        return handle_many([self._plain_agent(client) for client in requests], stage, bodies)

    def _noting(self, contributed: Contributed) -> Contributed:
        """`contributed`, after which the run folder says how often it failed."""

        def noting(agreement: Agreement, weights: Vector, clients: Sequence[Contributor], entropy: Entropy) -> Lanes:
            lanes = contributed(agreement, weights, clients, entropy)
            _, round_number, _ = clients[0].batch_seed
            self._tally.note(self._folder, round_number=round_number, clients=len(clients))
            return lanes

        return noting

    def _plain_agent(self, client: int) -> Agent:
        if client not in self._plain:
            self._plain[client] = Agent(self._new_holder(client), self._context)
        return self._plain[client]

    def _masked_agent(self, client: int) -> MaskedAgent:
        if client not in self._masked:
            assert self._roster is not None
            member = Member(_client_id(client), self._identities[client], self._public_keys)
            self._masked[client] = MaskedAgent(self._new_holder(client), member, self._roster, self._context)
        return self._masked[client]

    def _new_holder(self, client: int) -> Holder:
        records = partial(self._holdings.records, client)
        return Holder(_client_id(client), _dataset_id(client), records, fingerprint=None)


def coordinator_key(folder: Path) -> SigningKey:
    """The coordinator's key in a simulation, made for this run: that of the roster, where masking is on."""
    return SigningKey(_derive_identity(_run_secret(folder), SIMULATED_COORDINATOR))


def _identities(folder: Path, population_size: int) -> list[SigningKey]:
    """Every client's long-term key; the roster is written with the first use."""
    secret = _run_secret(folder)
    keys = [SigningKey(_derive_identity(secret, _client_id(client))) for client in range(population_size)]
    if not (folder / ROSTER_FILE).is_file():
        coordinator = RosterEntry("coordinator", "", SIMULATED_COORDINATOR, coordinator_key(folder).public)
        members = [
            RosterEntry(_dataset_id(client), "", _client_id(client), key.public) for client, key in enumerate(keys)
        ]
        write_whole(folder / ROSTER_FILE, Roster.of(coordinator, tuple(members)).content)
    return keys


def _run_secret(folder: Path) -> bytes:
    """The 32 bytes of this run from which all its simulated identities derive."""
    secret_file = folder / _KEY_FILE
    if not secret_file.is_file():
        write_whole(secret_file, os.urandom(32), mode=0o600)
    return secret_file.read_bytes()


def _derive_identity(secret: bytes, client_id: bytes) -> bytes:
    """The 32 bytes of one simulated identity's private key."""
    return hmac.digest(secret, b"fedlearn/simulation/v1/identity" + client_id, "sha256")


class Holdings:
    """Each client's share of the pooled records; copies are kept while the clients are few."""

    def __init__(self, data: SimulatedData) -> None:
        self._data = data
        self._kept: dict[int, Dataset] = {}

    def records(self, client: int) -> Dataset:
        """What client number `client` holds."""
        if client in self._kept:
            return self._kept[client]
        taken = self._data.train.take(self._data.partition(client))
        if self._data.population_size <= _FEW:
            self._kept[client] = taken
        return taken


def holder_context_of(
    data: SimulatedData, folder: Path, *, entropy: Entropy | None, on_failure: OnFailure
) -> HolderContext:
    """What all holders of a simulation share; `entropy`, for noise and coins, is a test's own or else the system's."""
    config = data.config
    return HolderContext(
        policy=Policy.for_simulation(config, data.plan),
        ledger=Ledger(folder / "ledger.db"),
        positions=Positions(folder / "ledger.db"),
        build=data.build_model,
        population_size=data.population_size,
        device=pick_device(config.runtime.device),
        compiled=config.runtime.compile,
        alone=False,
        on_failure=on_failure,
        step_noise=box_muller,
        entropy=entropy or stream_entropy(os.urandom),
    )


def _client_id(client: int) -> bytes:
    return client.to_bytes(16, "big")


def _dataset_id(client: int) -> str:
    return f"client-{client}"
