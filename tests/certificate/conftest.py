"""One short run that all tests of certificates look at, and a coordinator that signs whatever it likes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlearn import simulate
from fedlearn.certificate.form import encode
from fedlearn.config.run_config import RunConfig
from fedlearn.simulation.simulated import coordinator_key


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a masked run of three rounds."""
    config = RunConfig.load("digits", ["run.rounds=3", "run.spare_rounds=1"])
    return simulate(config, output=tmp_path_factory.mktemp("certified") / "run").run_dir


@pytest.fixture
def certificate(finished_run: Path) -> bytes:
    return (finished_run / "certificate.json").read_bytes()


@pytest.fixture
def model_file(finished_run: Path) -> bytes:
    return (finished_run / "model.safetensors").read_bytes()


@pytest.fixture
def sign_anew(finished_run: Path, certificate: bytes) -> Callable[[Callable[[dict[str, Any]], None]], bytes]:
    """What a coordinator would hand out that changes the content and signs it with its own key."""

    def lie(change: Callable[[dict[str, Any]], None]) -> bytes:
        content = json.loads(certificate)
        del content["coordinator"]
        change(content)
        return encode(content, coordinator_key(finished_run))

    return lie
