"""The batched engine on a Ray cluster of two nodes: the sums of one process, also when a node is lost on the way."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fedlearn
from fedlearn.crypto.keystream import stream_entropy
from tests.simulation.federation import MLP, UNMASKED, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator["object"]:
    """Two nodes of one core each, the second of which can be taken away."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(fedlearn.__file__).parents[1]))
    utils = pytest.importorskip("ray.cluster_utils")
    made = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.lost = made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.parametrize("mode", ["record-local", "client-distributed"])
def test_a_release_is_that_of_one_process_and_no_noise_is_drawn_twice_when_a_node_is_lost(
    cluster, mode, load_digits, tmp_path
):
    """In `record-local` the noise is drawn inside of tasks: drawn anew on another node, the sums would differ."""
    setting = (*UNMASKED, *MLP, f"privacy.mode={mode}", "privacy.sampling_probability=1/2", "training.local_steps=40")
    totals = {}
    for name, overrides in {"here": (), "cluster": (f"runtime.ray_address={cluster.address}",)}.items():
        entropy = stream_entropy(lambda size: b"\x05" * size)
        federation = Federation(load_digits(*setting, *overrides), tmp_path / name, entropy)
        totals[name] = [federation.total(number=1).lanes]
        if name == "cluster":
            take_away(cluster)
        totals[name] += [federation.total(number=number).lanes for number in (2, 3)]
        federation.cohorts.close()
    np.testing.assert_array_equal(totals["here"], totals["cluster"])


def take_away(cluster) -> None:
    """The second node dies while Ray still counts on it for the next tasks."""
    for process in cluster.lost.all_processes["raylet"]:
        os.kill(process.process.pid, 9)


def test_a_whole_run_gives_the_model_of_one_process(cluster, load_digits, tmp_path):
    models = []
    for name, overrides in {"here": (), "cluster": (f"runtime.ray_address={cluster.address}",)}.items():
        config = load_digits(*UNMASKED, "privacy.mode=none", *overrides)
        result = fedlearn.simulate(config, output=tmp_path / name)
        assert result.rounds == 3
        models.append(load_file(tmp_path / name / "model.safetensors"))
    for name in models[0]:
        np.testing.assert_array_equal(models[0][name], models[1][name])
