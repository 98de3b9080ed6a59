"""What several rooms' tests share: a small run that takes a second, and agents without a command line around them."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.crypto.keystream import Entropy
from fedlearn.holder.frames import Frame
from fedlearn.model.layout import write_model
from fedlearn.model.vector import layout_of, read_parameters
from fedlearn.simulation.simulated import AgentPool

SESSION = "0123456789abcdef" * 2


def pytest_make_parametrize_id(val: object) -> str | None:
    """A function by its name alone: with its address in it, two processes would collect tests of different names."""
    return getattr(val, "__name__", None) if callable(val) else None


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_HOME", str(tmp_path / "home"))


@pytest.fixture
def load_digits() -> Callable[..., RunConfig]:
    """The shipped digits scenario with overrides."""

    def load(*overrides: str) -> RunConfig:
        return RunConfig.load("digits", overrides)

    return load


@pytest.fixture
def load_plain(load_digits: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """The same with masking off: vectors leave in the clear."""
    return lambda *overrides: load_digits("secure_aggregation.masking=false", *overrides)


@pytest.fixture(autouse=True)
def _loggers_stay_on() -> None:
    """Parts of Flower that some tests load configure logging anew and turn every logger off that exists by then."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("fedlearn") and isinstance(logger, logging.Logger):
            logger.disabled = False


class Party:
    """A coordinator played by hand against real agents."""

    def __init__(self, config: RunConfig, folder: Path, entropy: Entropy | None = None) -> None:
        self.config = config
        self.data = load_simulated_data(config)
        folder.mkdir(exist_ok=True)
        self.pool = AgentPool(self.data, folder, entropy=entropy)
        model = self.data.build_model(config)
        self.layout = layout_of(model)
        self.model = write_model(read_parameters(model), self.layout)

    def frame(
        self, stage: str, body: bytes, *, round_number: int = 1, attempt: int = 0, session: str = SESSION
    ) -> bytes:
        return Frame(stage, session, round_number, attempt, body).to_bytes()

    def advertise(self, client: int = 0, **where: int) -> bytes:
        return self.pool.handle(client, "advertise", self.frame("advertise", self.config.to_bytes(), **where))

    def masked(self, client: int = 0, **where: int) -> bytes:
        return self.pool.handle(client, "masked", self.frame("masked", self.model, **where))


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[[RunConfig], Party]]:
    """Plays the coordinator of a configuration."""
    parties: list[Party] = []

    def start(config: RunConfig, folder: str = ".", entropy: Entropy | None = None) -> Party:
        parties.append(Party(config, tmp_path / folder, entropy))
        return parties[-1]

    yield start
    for party in parties:
        party.pool.close()
