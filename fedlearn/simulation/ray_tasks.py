"""A pool on a Ray cluster that runs already: one task a chunk, records put there once, weights once a round.

A node that is lost takes its tasks along, and Ray computes them again elsewhere: a chunk brings its seed, so that what
it draws is the same, and the noise of a sum is drawn here when all chunks are there. Every node needs the same fedlearn
installed. Whoever reads the cluster's memory reads the records: a simulation's own.
"""

import importlib.util
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.pooled_data import SimulatedData, partition_of
from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import IntVector
from fedlearn.round.agreement import agree
from fedlearn.round.tally import Tally
from fedlearn.simulation.chunk_work import ChunkWork
from fedlearn.simulation.simulated import Holdings
from fedlearn.simulation.worker_pool import Chunk, SeededEntropy
from fedlearn.task.classification import Classification, class_names
from fedlearn.toml import parse_toml
from fedlearn.training.device import pick_device
from fedlearn.training.stacked.box_muller import box_muller

__all__ = ["RayTasks", "check_ray_address"]

_RETRIES: Final = 8  # of one chunk, when nodes are lost
_CONNECT_SECONDS: Final = 5.0


def check_ray_address(address: str) -> None:
    """Refuse an address at which no cluster can be, before a run folder is made.

    Raises:
        ConfigError: Ray is not installed, or nobody listens there.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("runtime.ray_address is set, and Ray is not installed; run pip install 'fedlearn[ray]'")
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not (host and port.isdigit()):
        raise ConfigError(f'runtime.ray_address is "{address}"; expected host:port of a Ray cluster, or "auto"')
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f'runtime.ray_address is "{address}", where no Ray cluster listens ({error}); start one with ray start '
            "--head, or leave the key out"
        ) from None


class RayTasks:
    """The tasks of one run on the cluster at `address`; as `worker_pool.WorkerPool`."""

    def __init__(self, address: str, data: SimulatedData, tally: Tally) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray  # seconds of import that only this pool pays

        self._ray, self._tally = ray, tally
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RunFailedError(f'the Ray cluster at "{address}" does not take the run: {error}') from None
        told: Mapping[str, Any] = _told_of(data)
        self._run = ray.put(told)
        gpus = 1 if data.config.runtime.device == "cuda" else 0
        self._task = ray.remote(_sum_of_chunk).options(max_retries=_RETRIES, num_cpus=1, num_gpus=gpus)

    def clean_sum(self, weights: Vector, chunks: Sequence[Chunk]) -> IntVector:
        """As `WorkerPool`."""
        total = np.zeros(len(weights), dtype=np.int64)
        shared = self._ray.put(weights)
        waiting = [self._task.remote(self._run, shared, chunk.to_bytes()) for chunk in chunks]
        try:
            while waiting:
                done, waiting = self._ray.wait(waiting)
                for one in done:
                    part, reasons = self._ray.get(one)
                    total += part
                    for reason in reasons:
                        self._tally.add_reason(reason)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1:]
            raise RunFailedError(f"a chunk of clients failed on the Ray cluster: {' '.join(reason)}") from None
        return total

    def close(self) -> None:
        """Leave the cluster; what still runs there for this run is ended."""
        self._ray.shutdown()


def _told_of(data: SimulatedData) -> dict[str, Any]:
    """What a task must know of a run, as values that any process can read."""
    return {
        "run": os.urandom(16).hex(),
        "version": version("fedlearn"),
        "config": data.config.to_toml(),
        "source": str(data.config.source) if data.config.source else None,
        "population_size": data.population_size,
        "features": data.train.features,
        "labels": data.train.labels,
        "clients": data.train.clients,
        "classes": class_names(data.train.task),
        "client_names": data.train.client_names,
    }


def _sum_of_chunk(told: Mapping[str, Any], weights: Vector, chunk: bytes) -> tuple[IntVector, list[str]]:
    """A task: the first one of a run in a process of a node derives what the configuration means there.

    Gives the sum, and why local work failed, a reason for each client that it failed for.
    """
    run = told["run"]
    if run not in _work_of_run:
        _work_of_run.clear()
        _work_of_run[run] = _work(told)
    work, tally = _work_of_run[run]
    return work(weights, Chunk.from_bytes(chunk)), tally.take()


_work_of_run: dict[str, tuple[ChunkWork, Tally]] = {}  # of the one run that this process of a node works for


def _work(told: Mapping[str, Any]) -> tuple[ChunkWork, Tally]:
    if told["version"] != version("fedlearn"):
        raise ConfigError(f"this node has fedlearn {version('fedlearn')}; the run is of {told['version']}")
    config = RunConfig.from_values(parse_toml(told["config"].encode(), place="the run"), place="the run")
    if told["source"] is not None:
        config = config.found_in(Path(told["source"]))
    train = Dataset(
        told["features"], told["labels"], Classification(tuple(told["classes"])), told["clients"], told["client_names"]
    )
    population = told["population_size"]
    data = SimulatedData(config, train, None, population, partition_of(config, train, population))
    coins, tally = SeededEntropy(), Tally()
    agreement = agree(
        config,
        data.build_model(config),
        population_size=population,
        device=pick_device(config.runtime.device),
        entropy=coins,
        step_noise=box_muller,
        compiled=config.runtime.compile,
        alone=False,
        on_failure=tally.add,
    )
    return ChunkWork(agreement, Holdings(data), coins), tally
