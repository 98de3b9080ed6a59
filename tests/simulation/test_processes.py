"""Processes beside this one: the same integers, whoever computes them and whoever is lost."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fedlearn
from fedlearn.crypto.keystream import SEED_BYTES, stream_entropy
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.simulation.processes import SummingProcesses, worker_count
from fedlearn.simulation.worker_pool import Chunk, OneProcess, chunks_of
from tests.holder.test_masked_agent import Coordinator
from tests.simulation.federation import MLP, UNMASKED, Federation

DIMENSION = 5


def chunks(count: int) -> list[Chunk]:
    return list(chunks_of(range(count), 1, block=2, entropy=stream_entropy()))


def sum_of_seeds(weights, chunk):
    """Stands for training: depends on the weights, the members and the randomness of the chunk."""
    draws = np.frombuffer(stream_entropy(lambda _: chunk.seed)(8 * DIMENSION), dtype=np.uint32)[:DIMENSION]
    return weights.astype(np.int64) * sum(chunk.members) + draws


def test_a_worker_of_a_pool_is_told_that_it_can_start_no_others():
    """Workers of a `multiprocessing.Pool` are daemons, which may have no children."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(worker_count, ("auto", "cpu")) == 1
        assert pool.apply(worker_count, (1, "cpu")) == 1
        with pytest.raises(ConfigError, match=r"runtime\.workers is 2, and this process is a worker of a pool itself"):
            pool.apply(worker_count, (2, "cpu"))


# Coins and shares, coins and noise in each step, nothing at random.
@pytest.mark.parametrize("mode", ["record-distributed", "record-local", "client-central"])
def test_a_release_does_not_depend_on_the_number_of_workers(mode, load_digits, tmp_path):
    totals = []
    for workers in (1, 2):
        config = load_digits(
            *UNMASKED,
            f"privacy.mode={mode}",
            *MLP,
            "privacy.sampling_probability=1/2",
            f"runtime.workers={workers}",
        )
        federation = Federation(config, tmp_path / str(workers), stream_entropy(lambda size: b"\x05" * size))
        totals.append([federation.total(number=number).lanes for number in (1, 2)])
        federation.cohorts.close()
    np.testing.assert_array_equal(totals[0], totals[1])


@pytest.mark.parametrize("mode", ["record-distributed", "none"])
def test_what_masked_clients_send_does_not_depend_on_the_number_of_workers(mode, play, load_digits):
    """One worker is two here, and two are three: alone, a process draws every client's noise from one stream."""
    setting = (f"privacy.mode={mode}", *MLP, *UNMASKED[1:], "privacy.sampling_probability=1/2")
    sent = []
    for workers in (2, 3):
        party = play(
            load_digits(*setting, f"runtime.workers={workers}"),
            str(workers),
            stream_entropy(lambda size: b"\x05" * size),
        )
        summed = Coordinator(party).run()
        assert summed.survivors == 10
        sent.append(summed.lanes)
    np.testing.assert_array_equal(*sent)
    if mode == "none":
        alone = Coordinator(play(load_digits(*setting), "alone")).run()
        np.testing.assert_array_equal(alone.lanes, sent[0])


def test_what_a_lost_worker_had_is_computed_again_from_the_same_seed(tmp_path):
    def dies_once(weights, chunk):
        with (tmp_path / "computed").open("a") as log:
            log.write(f"{chunk.members} {chunk.seed.hex()}\n")
        if 6 in chunk.members and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sum_of_seeds(weights, chunk)

    weights, work = np.arange(DIMENSION, dtype=np.float64), chunks(20)
    pool = SummingProcesses.of(2, DIMENSION, dies_once)
    np.testing.assert_array_equal(pool.clean_sum(weights, work), OneProcess(sum_of_seeds).clean_sum(weights, work))
    assert pool.clean_sum(weights + 1, work).any(), "one worker is enough for the next round"
    pool.close()
    computed = (tmp_path / "computed").read_text().splitlines()[: len(work) + 1]
    assert sorted(computed, key=computed.count)[-2:] == [line for line in computed if line.startswith("(6, 7)")]


def test_when_all_workers_are_lost_the_run_ends_in_a_sentence(tmp_path):
    def dies(weights, chunk):
        os.kill(os.getpid(), signal.SIGKILL)

    pool = SummingProcesses.of(2, DIMENSION, dies)
    with pytest.raises(RunFailedError, match="every worker process"):
        pool.clean_sum(np.zeros(DIMENSION), chunks(8))
    with pytest.raises(RunFailedError, match="every worker process"):
        pool.clean_sum(np.zeros(DIMENSION), chunks(8))
    pool.close()


def test_workers_end_with_whoever_forked_them():
    script = (
        "import time, numpy as np\n"
        "from fedlearn.simulation.processes import SummingProcesses\n"
        "pool = SummingProcesses.of(2, 1, lambda weights, chunk: np.zeros(1, np.int64)).processes\n"
        "print(*[worker.process.pid for worker in pool._workers], flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(is_alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_chunks_are_even_and_have_seeds_of_their_own():
    cut = list(chunks_of(range(1000), 3, block=5, entropy=stream_entropy()))
    assert [member for chunk in cut for member in chunk.members] == list(range(1000))
    assert {len(chunk.members) for chunk in cut} == {15, 16}
    assert len({chunk.seed for chunk in cut}) == len(cut)
    assert all(len(chunk.seed) == SEED_BYTES and chunk.seed.hex() not in repr(chunk) for chunk in cut)
    assert Chunk.from_bytes(cut[3].to_bytes()) == cut[3]
    assert list(chunks_of((), 1, block=5, entropy=stream_entropy())) == []


def test_a_gpu_is_fed_by_one_process():
    assert worker_count("auto", "cuda") == worker_count(1, "cuda") == 1
    assert worker_count("auto", "cpu") >= 1
    with pytest.raises(ConfigError, match='2 on device "cuda"'):
        worker_count(2, "cuda")


@pytest.mark.lengthy
def test_a_run_with_workers_is_resumed_with_as_many_or_fewer(load_digits, tmp_path):
    def stop(result):
        if result.round == 2:
            raise KeyboardInterrupt

    config = load_digits(*UNMASKED, "runtime.workers=2")
    with pytest.raises(KeyboardInterrupt):
        fedlearn.simulate(config, stop, output=tmp_path / "run")
    assert fedlearn.simulation.run.resume(tmp_path / "run").rounds == 3
