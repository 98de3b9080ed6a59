"""A large model fits a small machine: memory of one client and of the server's sum, by the benchmark anyone can run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "simulations" / "benchmarks" / "memory.py"


@pytest.mark.slow
def test_a_client_needs_four_vectors_and_the_server_one_sum() -> None:
    command = [sys.executable, str(BENCHMARK), "--clients", "3", "--dimension", "1000000", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout.splitlines()[-1])
    assert measured["client_bytes_an_entry"] <= 32
    assert measured["server_bytes_an_entry"] < 5
    assert measured["server_growth_a_reply"] < 0.1
