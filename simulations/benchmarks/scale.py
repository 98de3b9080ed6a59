"""From a thousand virtual clients to a million: time and memory of a round that asks a hundred of them.

    python simulations/benchmarks/scale.py [--json] [--rounds 10] [--repeats 3]

Workload W2, but each client draws its 60 records when it is asked. Populations take turns, each in a process of its
own; the first round is left out, and a figure is the median of all others. Exit 1 where a bar is missed; that on wall
time is judged only where the load before was at most 1.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from contestants.measuring import Contestant, Figures, machine, measure, print_table

POPULATIONS = (1_000, 10_000, 100_000, 1_000_000)
MOST_TIME = 1.10  # of a round with a million clients, as a share of one with a thousand
MOST_MEGABYTES = 20  # more with a million clients


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="that count, in each process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each population")
    parser.add_argument("--json", action="store_true", help="print one object as the last line")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    stated = _stated(_measured(asked.rounds, asked.repeats), load)
    print_table(stated)
    if asked.json:
        print(json.dumps(stated))
    return 1 if stated["missed"] else 0


def _measured(rounds: int, repeats: int) -> dict[int, Figures]:
    results = {population: Figures() for population in POPULATIONS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats):
            for population, figures in results.items():
                print(f"{population} clients, {turn + 1} of {repeats}", file=sys.stderr)
                measure(figures, "W2", _contestant(population), Path(folder), rounds)
    return results


def _contestant(population: int) -> Contestant:
    options = ("runtime.compile=false", "data.partition=drawn", f"data.population_size={population}")
    return Contestant("fedlearn_engine", peer=False, options=(*options, f"privacy.planned_records={60 * population}"))


def _stated(results: dict[int, Figures], load: float) -> dict[str, object]:
    small, large = results[POPULATIONS[0]], results[POPULATIONS[-1]]
    wall, cpu = median(large.wall) / median(small.wall), median(large.cpu) / median(small.cpu)
    more = large.megabytes - small.megabytes
    missed = []
    if cpu > MOST_TIME or (wall > MOST_TIME and load <= 1):
        missed.append(f"a round takes {wall:.2f} times the wall and {cpu:.2f} times the processor time")
    if more > MOST_MEGABYTES:
        missed.append(f"a million clients take {more:.0f} MB more than a thousand, expected at most {MOST_MEGABYTES}")
    return {
        "time_ratio_wall": round(wall, 3),
        "time_ratio_cpu": round(cpu, 3),
        "more_mb": round(more, 1),
        "load": round(load, 2),
        "wall_judged": load <= 1,
        "missed": missed,
        "engines": {f"{population:,} clients": figures.as_dict() for population, figures in results.items()},
        "machine": machine(),
    }


if __name__ == "__main__":
    sys.exit(main())
