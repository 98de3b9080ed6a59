"""A data holder on a small board: a run within 1.5 GB, and what its processes need while nothing is asked of them.

    python -m pytest -m slow -s tests/e2e/test_holder_memory.py

prints the figures of clients/README.md.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.deployment.starting import holder_process
from fedlearn.host.process_tree import descendants
from tests.e2e.real_federation import BLOCKS, RealFederation

LIMIT = 1_500_000_000
IDLE = 700_000_000
GROUPS = Path("/sys/fs/cgroup")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Group:
    """A control group with a memory limit, of whichever version this machine has; skips where none can be made."""

    def __init__(self) -> None:
        second = "memory" in _text(GROUPS / "cgroup.controllers").split()
        self.path = (GROUPS if second else GROUPS / "memory") / f"fedlearn-{os.getpid()}"
        limit = "memory.max" if second else "memory.limit_in_bytes"
        self._peak = "memory.peak" if second else "memory.max_usage_in_bytes"
        try:
            self.path.mkdir()
            (self.path / limit).write_text(str(LIMIT))
        except OSError as error:
            pytest.skip(f"no memory control group can be made here: {error.strerror}")

    @property
    def peak(self) -> int:
        """Bytes at most, file cache included: the kernel gives that back before it refuses anything."""
        return int((self.path / self._peak).read_text())

    @property
    def kills(self) -> int:
        """How many processes were killed for memory."""
        events = _text(self.path / "memory.events") or _text(self.path / "memory.oom_control")
        return int((re.search(r"^oom_kill (\d+)$", events, re.MULTILINE) or [0, 0])[1])


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def pss(process: int) -> int:
    """Bytes of a process, what it shares divided by how many share it; 0 of one that has ended."""
    found = re.search(r"^Pss:\s+(\d+) kB$", _text(Path(f"/proc/{process}/smaps_rollup")), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    made = Group()
    yield made
    made.path.rmdir()


@pytest.fixture(scope="module")
def federation(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    """The tutorial's federation; everything of Ada's runs within the limit."""
    start = "  fedlearn client start"
    enter = f"  sh -c '[ $0 != Ada ] || echo $$ > {group.path}/cgroup.procs; exec \"$@\"' $name fedlearn client start"
    script = BLOCKS["run=federation"]
    assert script.count(start) == 1
    made = RealFederation(
        tmp_path_factory.mktemp("demo"), holder=BLOCKS["file=holder.toml"], script=script.replace(start, enter)
    )
    yield made
    made.shell("; ".join(f"fedlearn client stop --home demo/{name}" for name in ("Ada", "Ben", "Cleo", "Dora")))
    made.shell("fedlearn server stop --home demo/operator")


def test_a_client_within_a_gigabyte_and_a_half_completes_the_digits_run(
    federation: RealFederation, group: Group
) -> None:
    assert federation.started.returncode == 0, federation.started.stderr
    assert "round 5 of 5" in federation.started.stderr
    (run,) = federation.status()["runs"]
    assert run["state"] == "finished"
    told = federation.shell("fedlearn client ledger show --json --home demo/Ada").stdout
    assert '"releases": {' in told
    assert re.search(r'"releases": \{"[0-9a-f]{32}": 5\}', told), "it took part in every round"
    print(f"\nall of a client's processes in 5 rounds: {group.peak / 1e6:.0f} MB at most, of {LIMIT / 1e6:.0f}")
    assert group.kills == 0
    assert group.peak <= LIMIT


def test_while_nothing_is_asked_agent_and_node_need_700_mb_together(federation: RealFederation, group: Group) -> None:
    """The others are stopped first, and the server for a moment: what is shared with them would count for less."""
    for name in ("Ben", "Cleo", "Dora"):
        assert federation.shell(f"fedlearn client stop --home demo/{name}").returncode == 0
    federation.operator("stop")
    process = holder_process(federation.folder / "demo" / "Ada" / "client")
    assert process is not None
    sizes = {number: size for number in (process, *descendants(process)) if (size := pss(number))}
    federation.operator("start --detach")
    assert len(sizes) >= 4, "its supervisor, the agent, SuperNode and SuperExec"
    for number, size in sizes.items():
        line = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        told = next((word.decode() for word in line if b"fedlearn." in word or b"flower" in word), "?")
        print(f"{size / 1e6:6.0f} MB PSS  {Path(told).name}")
    print(f"{sum(sizes.values()) / 1e6:6.0f} MB PSS together; load {os.getloadavg()[0]:.1f}")
    inside = {int(number) for number in (group.path / "cgroup.procs").read_text().split()}
    assert set(sizes) <= inside
    assert sum(sizes.values()) <= IDLE
