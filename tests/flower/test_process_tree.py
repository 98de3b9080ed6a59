"""No descendant of a process outlives `end_descendants`."""

import subprocess
import sys
import time

import pytest

from fedlearn.host.process_tree import descendants

# A child that starts a session of its own, whose child starts another, ignores signals and loses its parent.
SCRIPT = """
import os, subprocess, sys, time
from fedlearn.host.process_tree import adopt_orphans, descendants, end_descendants
adopt_orphans()
inner = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True)"
children = [
    subprocess.Popen([sys.executable, "-c", outer], start_new_session=True, stdout=subprocess.PIPE) for _ in range(3)
]
for child in children:
    child.stdout.readline()
    child.wait()
print(len(descendants(os.getpid())))
end_descendants()
print(len(descendants(os.getpid())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans to whom they descend from")
def test_orphans_in_sessions_of_their_own_are_ended() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["3", "0"]


def test_descendants_are_named_parents_first() -> None:
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE) as outer:
        deadline = time.monotonic() + 20
        while not (found := descendants(outer.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(found) == 1
        assert outer.stdin is not None
        outer.stdin.close()
