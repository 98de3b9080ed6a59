"""Nothing needs a network after installation: the demo runs where there is none, not even a loopback."""

import shutil
import subprocess
import sys

import pytest

# A user and a network namespace of its own: no interface is up in it.
CAGE = ["unshare", "--user", "--map-root-user", "--net"]


def cage_is_allowed() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*CAGE, "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not cage_is_allowed(), reason="this machine allows no namespace without a network")
def test_the_demo_runs_without_a_network(tmp_path):
    done = subprocess.run(
        [*CAGE, sys.executable, "-m", "fedlearn.cli", "simulate", "--set", "run.rounds=3", "--output", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
