"""kill -9 and a full disk, at any moment, of real processes: what left is booked, the chain holds, the run goes on.

FEDLEARN_KILLS says how many moments are tried: 5 unless it is set, 50 in `make soak`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.ledger import Ledger
from fedlearn.privacy.accounting import epsilon_of
from fedlearn.run.checkpoint import RunFolder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and kill -9 are POSIX")

KILLS = int(os.environ.get("FEDLEARN_KILLS", "5"))
CLIENTS = [f"client-{number}" for number in range(10)]


class Mortals:
    """Processes that can be ended at a moment, or by a file that may not grow."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("mortal.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def live(
        self, work: str, folder: Path, *words: object, seconds: float | None = None, limit: int | None = None
    ) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "work": work,
            "folder": str(folder),
            "seconds": seconds,
            "limit": limit,
            "words": [str(w) for w in words],
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        seen: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "Traceback" not in seen["said"], seen["said"]
        return seen

    def close(self) -> None:
        self._process.kill()  # its own end would take seconds
        self._process.communicate()


@pytest.fixture(scope="module")
def mortals() -> Iterator[Mortals]:
    opened = Mortals()
    yield opened
    opened.close()


def assert_booked(folder: Path, left: list[str]) -> None:
    """Each vector that left is a release in the ledger, whose chain and count hold, and epsilon is not below theirs."""
    if not left and not (folder / "ledger.db").exists():
        return
    ledger = Ledger(folder / "ledger.db")
    booked = {(each.dataset_id, each.round) for each in ledger.events() if each.released}
    seen = [(client, int(number)) for client, number in (line.split() for line in left)]
    assert set(seen) <= booked
    for client, times in Counter(client for client, _ in seen).items():
        event = ledger.events(client)[0].event
        assert ledger.spent(client)[1] >= epsilon_of([(event, times)], delta=1e-5, epsilon_ceiling=8.0)
    ledger.close()


@pytest.mark.lengthy
def test_r18_after_kill_9_at_random_moments_no_vector_left_that_is_not_booked(mortals, tmp_path):
    moments, left = random.Random(18), []
    for _ in range(KILLS):
        seen = mortals.live("coordinate", tmp_path, seconds=moments.uniform(0.05, 1.0))
        assert seen["status"] == -signal.SIGKILL
        left += seen["left"]
        assert_booked(tmp_path, left)
    last = mortals.live("coordinate", tmp_path, 1)
    assert [line.split()[0] for line in last["left"]] == CLIENTS, "and it goes on"


def assert_every_attempt_counts(folder: RunFolder) -> None:
    """What a simulation's clients released is an attempt that the coordinator counts as spent."""
    stored = folder.load_checkpoint() if folder.path.is_dir() else None
    if stored is None:
        return
    progress, events = stored[0], folder.lines("events.jsonl")
    spent = {(line["round"], line["attempt"]) for line in events}
    if progress.asking:
        spent.add((progress.round + 1, progress.attempt))
    assert len(spent) == progress.attempts_asked
    ledger = Ledger(folder.file("ledger.db"))
    released = Counter((each.round, each.attempt) for each in ledger.events() if each.released)
    ledger.close()
    assert set(released) <= spent
    for line in events:
        assert released[line["round"], line["attempt"]] >= line["survivors"]


@pytest.mark.lengthy
def test_r18_a_simulation_killed_at_random_moments_goes_on_and_counts_what_was_interrupted(mortals, tmp_path):
    moments, folder, ended = random.Random(81), RunFolder(tmp_path / "run"), False
    beginning = ["--output", folder.path, "--set", "run.rounds=8", "--set", f"run.spare_rounds={KILLS}"]
    beginning += ["--set", f"privacy.max_participations={KILLS + 8}"]
    for kill in range(KILLS + 1):
        begun = folder.file("config.toml").exists()
        seconds = None if kill == KILLS else moments.uniform(0.1, 1.2)
        words = ["--resume", folder.path] if begun else beginning
        if not begun and folder.path.exists():
            shutil.rmtree(folder.path)  # killed before it wrote what to go on with
        seen = mortals.live("simulate", folder.path, *words, seconds=seconds)
        ended = seen["status"] == 0
        assert ended or seen["status"] == -signal.SIGKILL, seen
        assert_every_attempt_counts(folder)
    assert ended
    summary = json.loads(folder.file("summary.json").read_text())
    ledger = Ledger(folder.file("ledger.db"))
    assert summary["rounds"] == 8
    assert max(Counter(each.dataset_id for each in ledger.events()).values()) <= summary["releases"]
    ledger.close()


# Where a file may not grow any more: no room for a count, for the journal's head, for one page of it after the other.
FULL = [0, 100, *range(4200, 4200 + 16 * 4120, 4120)]


@pytest.mark.lengthy
def test_r18_a_disk_that_is_full_at_any_write_refuses_the_round_and_loses_nothing(mortals, tmp_path):
    vectors = []
    for limit in FULL if KILLS > 5 else FULL[::4]:
        folder = tmp_path / str(limit)
        folder.mkdir()
        before = mortals.live("coordinate", folder, 1)["left"]
        full = mortals.live("coordinate", folder, 3, limit=limit)
        assert full["status"] == 0, full
        assert_booked(folder, before + full["left"])
        again = mortals.live("coordinate", folder, 1)
        assert [line.split()[0] for line in again["left"]] == CLIENTS
        assert_booked(folder, before + full["left"] + again["left"])
        vectors.append(len(full["left"]))
    assert vectors[0] == 0
    assert vectors == sorted(vectors), "with more room, more rounds"
    assert vectors[-1] > 0


@pytest.mark.lengthy
@pytest.mark.parametrize("limit", [45000, 30000, 4200, 0][:: 1 if KILLS > 5 else 2])
def test_a_simulation_that_finds_the_disk_full_ends_in_one_sentence_and_goes_on(mortals, tmp_path, limit):
    folder = tmp_path / "run"
    beginning = ["--output", folder, "--set", "run.rounds=3", "--set", "secure_aggregation.masking=false"]
    full = mortals.live("simulate", folder, *beginning, limit=limit)
    assert full["status"] in (3, 4), full
    assert full["said"].splitlines()[-1].startswith("fedlearn: ")
    assert not [path for path in folder.iterdir() if path.name.endswith(".new")]
    if (folder / "checkpoint.safetensors").exists():  # else it came to nothing: there is nothing to go on with
        assert mortals.live("simulate", folder, "--resume", folder)["status"] == 0
        assert_every_attempt_counts(RunFolder(folder))
