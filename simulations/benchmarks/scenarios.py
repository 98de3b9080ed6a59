"""Run the shipped scenarios and hold them to the results in their headers: `make bench`.

    python simulations/benchmarks/scenarios.py [--scenario NAME ...] [--runs 3]

A header's line `# expect: accuracy >= MEAN mean, >= LEAST min` is the bar. Each run has fresh noise; none is left out.
Exit 1 when a bar is missed. A scenario whose data is not on this machine is skipped with the sentence that says why.
"""

import argparse
import gc
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import fedlearn
from fedlearn.errors import ConfigError
from fedlearn.host.shipped import scenario_names, scenario_path

EXPECT = re.compile(r"^# expect: accuracy >= ([0-9.]+) mean, >= ([0-9.]+) min$", re.MULTILINE)
LARGEST_DIGITS_MB = 700


def bars(name: str) -> tuple[float, float]:
    """The least mean and the least single accuracy that a scenario's header promises."""
    found = EXPECT.search(scenario_path(name).read_text(encoding="utf-8"))
    if found is None:
        raise ConfigError(f"{name}: its header has no line '# expect: accuracy >= MEAN mean, >= LEAST min'")
    return float(found[1]), float(found[2])


def measure(name: str, runs: int, overrides: list[str]) -> bool:
    """Run one scenario so many times, print its row, and say whether it reached its bars."""
    least_mean, least = bars(name)
    accuracies, started = [], time.perf_counter()
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            result = fedlearn.simulate(fedlearn.RunConfig.load(name, overrides), output=Path(folder) / "run")
        assert result.accuracy is not None, "every shipped scenario has public test data"
        accuracies.append(result.accuracy)
        gc.collect()  # a run's clients refer to each other; 2 GB of features would wait for the next collection
    wall = (time.perf_counter() - started) / runs
    epsilons = ", ".join(f"{guarantee.epsilon:.3f}" for guarantee in result.guarantees) or "NOT PRIVATE"
    reached = bool(overrides) or (fmean(accuracies) >= least_mean and min(accuracies) >= least)
    print(
        f"{name:22} mean {fmean(accuracies):.4f}  min {min(accuracies):.4f}  max {max(accuracies):.4f}  "
        f"epsilon {epsilons}  {result.seconds_per_round:.3f} s a round  {wall:.1f} s a run  "
        f"{'' if reached else f'MISSED: mean >= {least_mean}, min >= {least}'}",
        flush=True,
    )
    return reached


def digits_memory() -> bool:
    """Peak memory of the demo in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedlearn.cli", "simulate", "digits", "--output", f"{folder}/run"]
        subprocess.run(command, check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"digits: peak memory {peak:.0f} MB, expected at most {LARGEST_DIGITS_MB}")
    return peak <= LARGEST_DIGITS_MB


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", action="append", choices=scenario_names())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="section.key=value; bars are not judged then")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.runs} runs each")
    reached = [digits_memory()] if arguments.scenario is None else []
    for name in arguments.scenario or scenario_names():
        try:
            reached.append(measure(name, arguments.runs, arguments.set))
        except ConfigError as error:
            print(f"{name:22} skipped: {error}", flush=True)
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
