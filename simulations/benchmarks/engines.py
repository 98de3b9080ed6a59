"""Simulation engines against each other, in one run: `make bench-peers`, then

    python simulations/benchmarks/engines.py --workload W2 [--json] [--engines NAME ...] [--rounds 5] [--repeats 3]

W1 100 clients of 600 records, cohorts of 10; W2 1,000 of 60, cohorts of 100; W3 is W2 with DP-SGD, W4 is W2 with a
guarantee for clients. Each touches 6,000 records of Fashion-MNIST a round (12.8 GFLOP). Engines take turns, each in a
process of its own; the first round of each is left out, and a figure is the median of all others. Processor seconds are
those of the engine's whole process tree. Exit 1 where a bar is missed; 2 where something is not installed. A bar on
seconds of wall time is judged only where the load before was at most 1. Ratios are to one compiled process of
fedlearn's where their names do not say otherwise; Flower has an actor on each core. In W3 Flower's client works out at
each visit what it spent, as Flower's example with Opacus does; "flower-ray-without-epsilon" is the same without that.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from contestants.clocks import matmul_peak
from contestants.measuring import PEERS, Contestant, Figures, machine, measure, print_table, write_records

from fedlearn.errors import ConfigError

GFLOP_A_ROUND = 12.8


CONTESTANTS: Mapping[str, Contestant] = {
    "flower-ray": Contestant("flower_ray", peer=True),
    "flower-ray-without-epsilon": Contestant("flower_ray", peer=True, options=("without-epsilon",), workloads=("W3",)),
    "flower-on-our-grid": Contestant("flower_grid", peer=False, workloads=("W1", "W2")),
    "pfl": Contestant("pfl_process", peer=True, workloads=("W1", "W2", "W4")),
    "opacus-hooks": Contestant("opacus_hooks", peer=True, workloads=("W3",)),
    "eager": Contestant("fedlearn_engine", peer=False, options=("runtime.compile=false",)),
    "compiled": Contestant("fedlearn_engine", peer=False, options=("runtime.compile=true",)),
    "two-processes": Contestant(
        "fedlearn_engine", peer=False, options=("runtime.compile=true", "runtime.workers=2"), workloads=("W2", "W3")
    ),
}
OURS_ON_W2 = ("eager", "compiled")  # which of ours W4 compares with the same on W2
# Ratios that a workload states: its name, whose figure is divided by whose, which figure, and the least it must be.
RATIOS: Mapping[str, tuple[tuple[str, str, str, str, float | None], ...]] = {
    "W1": (
        ("vs_flower_wall", "flower-ray", "compiled", "wall", 1.3),
        ("vs_flower_cpu", "flower-ray", "compiled", "cpu", None),
        ("vs_pfl", "pfl", "compiled", "cpu", 2.0),
        ("vs_pfl_eager", "pfl", "eager", "cpu", None),
    ),
    "W2": (
        ("vs_flower_wall", "flower-ray", "compiled", "wall", 5.0),
        ("vs_flower_cpu", "flower-ray", "compiled", "cpu", 8.0),
        ("vs_pfl", "pfl", "compiled", "cpu", 2.5),
        ("vs_pfl_eager", "pfl", "eager", "cpu", 1.6),
        ("vs_flower_wall_two_processes", "flower-ray", "two-processes", "wall", None),
        ("two_processes_wall", "compiled", "two-processes", "wall", 1.6),
    ),
    "W3": (
        ("vs_flower_wall", "flower-ray", "compiled", "wall", 20.0),
        ("vs_flower_wall_without_epsilon", "flower-ray-without-epsilon", "compiled", "wall", None),
        ("vs_flower_cpu", "flower-ray", "compiled", "cpu", None),
        ("vs_flower_cpu_without_epsilon", "flower-ray-without-epsilon", "compiled", "cpu", None),
        ("vs_flower_wall_two_processes", "flower-ray", "two-processes", "wall", None),
        ("vs_opacus_hooks", "opacus-hooks", "compiled", "cpu", 3.0),
        ("vs_opacus_hooks_eager", "opacus-hooks", "eager", "cpu", None),
    ),
    "W4": (
        ("vs_flower_wall", "flower-ray", "compiled", "wall", None),
        ("vs_flower_cpu", "flower-ray", "compiled", "cpu", None),
        ("vs_pfl", "pfl", "compiled", "cpu", None),
        ("vs_pfl_eager", "pfl", "eager", "cpu", None),
    ),
}
LEAST_SHARE_OF_PEAK = 0.25  # on W2
MOST_COST_OVER_W2 = 1.1  # of W4
MOST_MEGABYTES = 600  # eager on W2
MOST_START_SECONDS = 5.0  # from the start of the process to the end of its first round, eager on W2


def main() -> int:
    """The command."""
    asked = _arguments()
    missing = [name for name in asked.engines if CONTESTANTS[name].peer and not PEERS.is_file()]
    if missing:
        print(
            f"{', '.join(missing)}: not installed; run `make bench-peers`, or name others by --engines", file=sys.stderr
        )
        return 2
    load = os.getloadavg()[0]
    try:
        results = compete(asked.workload, asked.engines, rounds=asked.rounds, repeats=asked.repeats)
    except (ConfigError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    stated = _stated(asked.workload, results, load=load, repeats=asked.repeats, rounds=asked.rounds)
    print_table(stated)
    if asked.json:
        print(json.dumps(stated))
    return 1 if stated["missed"] else 0


def compete(
    workload: str, engines: Sequence[str], *, rounds: int, repeats: int, device: str = "cpu"
) -> dict[tuple[str, str], Figures]:
    """(workload, engine) -> figures; each of ours on W4 is followed by the same on W2, which it is compared with."""
    pairs = []
    for engine in (name for name in engines if workload in CONTESTANTS[name].workloads):
        pairs.append((workload, engine))
        if workload == "W4" and engine in OURS_ON_W2:
            pairs.append(("W2", engine))
    results: dict[tuple[str, str], Figures] = {pair: Figures() for pair in pairs}
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder))
        for turn in range(repeats):
            for name, engine in pairs:
                print(f"{name} {engine}, {turn + 1} of {repeats}", file=sys.stderr)
                measure(results[name, engine], name, CONTESTANTS[engine], Path(folder), rounds, device)
    return results


def _stated(
    workload: str, results: Mapping[tuple[str, str], Figures], *, load: float, repeats: int, rounds: int
) -> dict[str, object]:
    """The object that --json prints."""
    figures = {f"{name} {engine}" if name != workload else engine: found for (name, engine), found in results.items()}
    stated: dict[str, object] = {"workload": workload}
    missed: list[str] = []
    for name, slow, fast, figure, bar in RATIOS[workload]:
        if slow in figures and fast in figures:
            ratio = round(median(getattr(figures[slow], figure)) / median(getattr(figures[fast], figure)), 2)
            stated[name] = ratio
            if bar is not None and ratio < bar and (figure == "cpu" or load <= 1):
                missed.append(f"{name} is {ratio}, expected at least {bar}")
    stated |= _against_fixed_bars(workload, figures, missed, load)
    return stated | {
        "load": round(load, 2),
        "wall_judged": load <= 1,
        "missed": missed,
        "repeats": repeats,
        "rounds": rounds,
        "engines": {name: found.as_dict() for name, found in figures.items()},
        "machine": machine(),
    }


def _against_fixed_bars(
    workload: str, figures: Mapping[str, Figures], missed: list[str], load: float
) -> dict[str, object]:
    stated: dict[str, object] = {}
    if "compiled" in figures:
        peak = matmul_peak()
        share = GFLOP_A_ROUND / median(figures["compiled"].cpu) / peak
        stated |= {"fraction_of_peak": round(share, 3), "matmul_gflops": round(peak, 1)}
        if workload == "W2" and share < LEAST_SHARE_OF_PEAK:
            missed.append(f"fraction_of_peak is {share:.3f}, expected at least {LEAST_SHARE_OF_PEAK}")
    for name in OURS_ON_W2:
        if workload == "W4" and name in figures and f"W2 {name}" in figures:
            cost = median(figures[name].cpu) / median(figures[f"W2 {name}"].cpu)
            stated[f"cost_over_w2_{name}"] = round(cost, 3)
            if cost > MOST_COST_OVER_W2:
                missed.append(f"cost_over_w2_{name} is {cost:.3f}, expected at most {MOST_COST_OVER_W2}")
    if workload == "W2" and "eager" in figures:
        eager = figures["eager"]
        start = median(eager.start)
        stated |= {"first_round_seconds": round(start, 1), "peak_mb_eager": round(eager.megabytes)}
        if start > MOST_START_SECONDS and load <= 1:
            missed.append(f"first_round_seconds is {start:.1f}, expected at most {MOST_START_SECONDS:.0f}")
        if eager.megabytes > MOST_MEGABYTES:
            missed.append(f"peak_mb_eager is {eager.megabytes:.0f}, expected at most {MOST_MEGABYTES}")
    return stated


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(RATIOS), default="W2")
    parser.add_argument("--engines", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=5, help="that count, in each process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each engine")
    parser.add_argument("--json", action="store_true", help="print one object as the last line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
