"""A run that a machine has no room for is refused before it begins, with the figures."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.errors import ConfigError
from fedlearn.host.memory_limits import Room, check_coordinator_room, check_holder_room

MUCH = 1 << 50
MESSAGE = 10**8


def test_f13_the_coordinator_needs_three_times_all_messages_and_a_gigabyte_of_disk():
    needed = 3 * 5 * MESSAGE + 10**9
    check_coordinator_room(Room(disk=needed, memory=MUCH), message=MESSAGE, cohort=4)
    with pytest.raises(ConfigError, match=r"2\.5 GB of disk are free; the run needs 2\.5 GB: make room first"):
        check_coordinator_room(Room(disk=needed - 1, memory=MUCH), message=MESSAGE, cohort=4)


def test_f16_the_coordinator_needs_six_times_a_message_of_memory_and_a_holder_four_times():
    check_coordinator_room(Room(MUCH, 6 * MESSAGE + 3 * 10**8), message=MESSAGE, cohort=4)
    check_holder_room(Room(MUCH, 4 * MESSAGE + 3 * 10**8), message=MESSAGE)
    with pytest.raises(ConfigError, match=r"0\.9 GB of memory are free; the run needs 0\.9 GB"):
        check_coordinator_room(Room(MUCH, 6 * MESSAGE + 3 * 10**8 - 1), message=MESSAGE, cohort=4)
    with pytest.raises(ConfigError, match=r"0\.7 GB of memory are free; the run needs 0\.7 GB"):
        check_holder_room(Room(MUCH, 4 * MESSAGE + 3 * 10**8 - 1), message=MESSAGE)


def test_f16_a_message_above_200_mb_is_refused_whatever_the_machine_has():
    for check in (check_holder_room, lambda room, **sizes: check_coordinator_room(room, cohort=4, **sizes)):
        check(Room(MUCH, MUCH), message=200 * 10**6)
        with pytest.raises(ConfigError, match="would have 201 MB; expected at most 200 MB"):
            check(Room(MUCH, MUCH), message=201 * 10**6)


def test_a_holder_needs_disk_for_the_models_that_it_keeps():
    check_holder_room(Room(disk=19 * MESSAGE + 10**8, memory=MUCH), message=MESSAGE)
    with pytest.raises(ConfigError, match="of disk are free"):
        check_holder_room(Room(disk=19 * MESSAGE + 10**8 - 1, memory=MUCH), message=MESSAGE)


def test_free_memory_is_that_of_the_machine(tmp_path):
    room = Room.at(tmp_path)
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvail"))
    assert 0 < room.memory <= 1.2 * 1024 * int(available.split()[1])
    assert room.disk > 0


def test_a_memory_limit_of_a_control_group_counts(tmp_path):
    group = Path("/sys/fs/cgroup/memory/fedlearn-test-room")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group can be made here: {error.strerror}")
    try:
        (group / "memory.limit_in_bytes").write_text("400000000")
        script = (
            f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
            f"from pathlib import Path; from fedlearn.host.memory_limits import Room; print(Room.at(Path('/')).memory)"
        )
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
        assert 300_000_000 < int(told.stdout) < 400_000_000
    finally:
        group.rmdir()
