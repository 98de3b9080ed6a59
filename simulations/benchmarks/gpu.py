"""The device tests and W1 to W4 on a CUDA device, one table: `make bench-gpu`. Without one it says so and ends.

    python simulations/benchmarks/gpu.py [--rounds 10] [--repeats 3] [--json]

Figures are seconds of wall time a round, the median of all but each process's first; ratios are those to "eager".
"""

import argparse
import json
import os
import subprocess
import sys
from statistics import median

import torch
from contestants.measuring import PEERS, machine
from engines import CONTESTANTS, RATIOS, compete

ENGINES = ("flower-ray", "pfl", "opacus-hooks", "eager", "compiled")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} finds no CUDA device here: nothing was measured")
        return 0
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu"], check=False).returncode
    load = os.getloadavg()[0]
    rows = [row for workload in sorted(RATIOS) for row in _rows(workload, asked.rounds, asked.repeats)]
    _print(rows, load)
    if asked.json:
        device = torch.cuda.get_device_name()
        print(json.dumps({"device": device, "load": round(load, 2), "rows": rows, "machine": machine()}))
    return tests


def _rows(workload: str, rounds: int, repeats: int) -> list[dict[str, object]]:
    there = [name for name in ENGINES if PEERS.is_file() or not CONTESTANTS[name].peer]
    found = compete(workload, there, rounds=rounds, repeats=repeats, device="cuda")
    own = {engine: figures for (name, engine), figures in found.items() if name == workload}
    eager = median(own["eager"].wall)
    return [
        {
            "workload": workload,
            "engine": engine,
            "wall": round(median(figures.wall), 4),
            "times_eager": round(median(figures.wall) / eager, 2),
        }
        for engine, figures in own.items()
    ]


def _print(rows: list[dict[str, object]], load: float) -> None:
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, load before {load:.2f}")
    print(f"{'':6}{'engine':22}{'wall s':>9}{'times eager':>13}")
    for row in rows:
        print(f"{row['workload']:6}{row['engine']:22}{row['wall']:9.4f}{row['times_eager']:13.2f}")


if __name__ == "__main__":
    sys.exit(main())
