"""The data holders of a simulation: a pool of agents over one partitioned data set, one ledger in the run folder."""

import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from fedlearn.agent.agent import Agent, Holder, Premises, handle_many
from fedlearn.agent.agreement import Agreement, plan_for
from fedlearn.agent.crew import SeededEntropy
from fedlearn.agent.masked_agent import MaskedAgent, handle_many_masked
from fedlearn.agent.processes import worker_count
from fedlearn.agent.row_crew import RowCrew
from fedlearn.agent.source import data_options, start_model
from fedlearn.agent.tally import Tally
from fedlearn.agent.turns import Contributed
from fedlearn.checkpoint import ROSTER_FILE, RunFolder
from fedlearn.config import RunConfig
from fedlearn.contribution import Contributor
from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.crypto.signatures import SigningKey
from fedlearn.data import load_dataset
from fedlearn.data.dataset import Dataset
from fedlearn.data.partition import Partition, make_partition
from fedlearn.durable import write_whole
from fedlearn.errors import ConfigError
from fedlearn.ledger import Ledger
from fedlearn.models import model_features
from fedlearn.policy import Policy
from fedlearn.positions import Positions
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import Lanes
from fedlearn.roster import Roster, RosterEntry
from fedlearn.secagg.stages import Member
from fedlearn.training.device import pick_device
from fedlearn.training.local import OnFailure
from fedlearn.training.stacked.box_muller import box_muller
from fedlearn.vector import layout_of

__all__ = [
    "SIMULATED_COORDINATOR",
    "AgentPool",
    "Holdings",
    "SimulatedData",
    "coordinator_key",
    "load_simulated_data",
    "partition_of",
    "premises_of",
]

SIMULATED_COORDINATOR = b"\xff" * 16  # its client id in every simulation

_KEY_FILE = "identities.key"
_FEW = 64  # clients whose copies are kept


@dataclass(frozen=True)
class SimulatedData:
    """The pooled records of a simulation as the model sees them, and who holds which."""

    config: RunConfig
    train: Dataset = field(repr=False)
    test: Dataset | None = field(repr=False)
    population_size: int
    partition: Partition = field(repr=False)
    unusable: Mapping[str, str] = field(default_factory=dict, repr=False)  # by file and row: why it gives no record

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a record as the model sees it."""
        return self.train.input_shape

    def build_model(self, config: RunConfig) -> nn.Module:
        """A fresh model with the start weights of `run.seed`, checked for its mode.

        Raises:
            ConfigError: the model cannot be built, or cannot be trained in this mode.
        """
        source = self.config.source
        search = ([source.parent] if source else []) + [Path.cwd()]
        return start_model(config, self.train, search=search)

    @cached_property
    def plan(self) -> Plan:
        """The run's plan, derived from the model's dimension and the population.

        Raises:
            ConfigError: the plan is refused.
        """
        dimension = layout_of(self.build_model(self.config)).dimension
        return plan_for(self.config, dimension=dimension, population_size=self.population_size)


def load_simulated_data(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> SimulatedData:
    """Load the data set, turn records into what the model takes, divide them among the clients.

    Raises:
        ConfigError: the data cannot be used, in one sentence.
    """
    loaded = load_dataset(data_options(config))
    natural = config.data.partition == "natural"
    population = config.data.population_size or (len(loaded.train.client_names) if natural else None)
    if population is None:
        raise ConfigError("data.population_size is missing; state how many clients the records are divided among")

    def seen_by_model(records: Dataset) -> Dataset:
        return model_features(config.model.name, options=config.model.options, dataset=records, progress=progress)

    if not len(loaded.train):
        raise ConfigError("data has no record to train on; name a file or a share that leaves some")
    train = seen_by_model(loaded.train)
    return SimulatedData(
        config=config,
        train=train,
        test=seen_by_model(loaded.test) if loaded.test is not None and len(loaded.test) else None,
        population_size=population,
        partition=partition_of(config, train, population),
        unusable=loaded.unusable,
    )


def partition_of(config: RunConfig, train: Dataset, population_size: int) -> Partition:
    """Who holds which records of `train`.

    Raises:
        ConfigError: they cannot be divided so.
    """
    return make_partition(
        config.data.partition,
        labels=train.labels,
        clients=train.clients,
        client_names=train.client_names,
        population_size=population_size,
        alpha=config.data.alpha,
        client_records=(config.privacy.planned_records or 0) // population_size,
        seed=config.run.seed,
    )


class AgentPool:
    """All holders of a simulation in one process; an agent exists from the first message to it."""

    def __init__(self, data: SimulatedData, folder: Path, *, entropy: Entropy | None = None) -> None:
        """`entropy`, for noise and coins, is the operating system's unless a test brings its own."""
        self._holdings = Holdings(data)
        workers = worker_count(data.config.runtime.workers, pick_device(data.config.runtime.device))
        self._crew: RowCrew | None = None
        coins = SeededEntropy()
        self._tally, self._folder = Tally(), folder
        self._premises = premises_of(
            data, folder, entropy=coins if workers > 1 else entropy, on_failure=self._tally.add
        )
        if workers > 1:
            seeds = entropy or stream_entropy(os.urandom)
            self._crew = RowCrew(workers, self._holdings.records, coins=coins, entropy=seeds)
            self._premises.contributed = self._crew.contributed
        self._premises.contributed = self._noting(self._premises.contributed)
        masking = data.config.secure_aggregation.masking
        identities = _identities(folder, data.population_size) if masking else None
        self._roster = RunFolder(folder).roster() if masking else None
        self._public_keys = self._roster.keys if self._roster else {}  # one mapping for all, not one a client
        self._identities = identities or []
        self._plain: dict[int, Agent] = {}
        self._masked: dict[int, MaskedAgent] = {}
        accounts = [_dataset_id(client) for client in range(data.population_size)]
        self._premises.open_account(accounts, order=data.plan.ledger_order)

    @property
    def policy(self) -> Policy:
        """What all holders accept."""
        return self._premises.policy

    @property
    def ledger(self) -> Ledger:
        """The one ledger of all holders."""
        return self._premises.ledger

    @property
    def roster(self) -> Roster | None:
        """Who takes part; None where masking is off."""
        return self._roster

    def close(self) -> None:
        """Let the workers go, and close the ledger."""
        if self._crew is not None:
            self._crew.close()
        self._premises.close()

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
            self._plain[client] = Agent(self._new_holder(client), self._premises)
        return self._plain[client]

    def _masked_agent(self, client: int) -> MaskedAgent:
        if client not in self._masked:
            assert self._roster is not None
            member = Member(_client_id(client), self._identities[client], self._public_keys)
            self._masked[client] = MaskedAgent(self._new_holder(client), member, self._roster, self._premises)
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


def premises_of(data: SimulatedData, folder: Path, *, entropy: Entropy | None, on_failure: OnFailure) -> Premises:
    """What all holders of a simulation share; `entropy`, for noise and coins, is a test's own or else the system's."""
    config = data.config
    return Premises(
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
