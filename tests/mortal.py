"""A process that forks others, which are killed or find the disk full; run as a script by tests of crashes.

It has loaded everything once, so that a life begins at once and kill -9 hits it in its work. One JSON object a line
comes in ({"work", "folder", "seconds", "limit", "words"}); one goes out when that life has ended ({"status", "said",
"left"}): its exit status, its standard error, and a line for each vector that left it.

* work "simulate": `fedlearn simulate` with `words`
* work "coordinate": a coordinator of its own with the agents of digits, round after round, or `words`[0] times
"""

import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

PLAIN = (
    *("secure_aggregation.masking=false", "run.rounds=9000", "run.spare_rounds=1000"),
    *("privacy.max_participations=10000", "privacy.target_epsilon=8"),
)
SESSION = "0123456789abcdef" * 2
CLIENTS = range(10)


def simulate(words: list[str]) -> None:
    from fedlearn.cli import main

    sys.argv = ["fedlearn", "simulate", *words]
    main()


def fill_disk(limit: int | None) -> None:
    """From now on no file grows beyond `limit` bytes."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def coordinate(folder: Path, data: Any, rounds: int | None, left: int, limit: int | None) -> None:
    """Ask for vectors, and say of each that it left as soon as it is here; the disk is full once the ledger is open."""
    from fedlearn.holder.frames import REFUSAL, Frame
    from fedlearn.model.layout import write_model
    from fedlearn.model.vector import layout_of, read_parameters
    from fedlearn.simulation.simulated import AgentPool

    model = data.build_model(data.config)
    body = write_model(read_parameters(model), layout_of(model))
    pool = AgentPool(data, folder)
    fill_disk(limit)
    last = max((booking.round for booking in pool.ledger.events()), default=0)
    number = last
    while rounds is None or number < last + rounds:
        number += 1
        for client in CLIENTS:
            pool.handle(client, "advertise", Frame("advertise", SESSION, number, 0, data.config.to_bytes()).to_bytes())
        replies = pool.handle_many(
            "masked", dict.fromkeys(CLIENTS, Frame("masked", SESSION, number, 0, body).to_bytes())
        )
        for client, reply in zip(CLIENTS, replies, strict=True):
            if reply != REFUSAL:
                os.write(left, f"client-{client} {number}\n".encode())
    pool.close()


def live(order: dict[str, Any], data: Any, left: int) -> int:
    """One life; returns the exit status."""
    from fedlearn.errors import FedlearnError

    try:
        if order["work"] == "simulate":
            fill_disk(order["limit"])
            simulate(order["words"])
        else:
            rounds = int(order["words"][0]) if order["words"] else None
            coordinate(Path(order["folder"]), data, rounds, left, order["limit"])
    except SystemExit as ended:
        return int(ended.code or 0)
    except FedlearnError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def fork_a_life(order: dict[str, Any], data: Any) -> dict[str, Any]:
    """A child that lives as the order says, and what was seen of it."""
    said, left = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(said[1], 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 70
        try:
            status = live(order, data, left[1])
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    for pipe in (said, left):
        os.close(pipe[1])
    if order["seconds"] is not None:
        time.sleep(order["seconds"])
        os.kill(child, signal.SIGKILL)
    seen = [b"".join(iter(lambda pipe=pipe: os.read(pipe[0], 65536), b"")).decode() for pipe in (said, left)]
    for pipe in (said, left):
        os.close(pipe[0])
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "said": seen[0], "left": seen[1].splitlines()}


def serve() -> None:
    """Until standard input ends."""
    # A fork takes no other thread along, and would wait for it for ever.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    for module in ("torchmetrics.classification", "fedlearn.cli.display", "fedlearn.simulation.run"):
        importlib.import_module(module)  # what a life would load first, and take seconds for
    from fedlearn.config.run_config import RunConfig
    from fedlearn.coordinator.pooled_data import load_simulated_data

    data = load_simulated_data(RunConfig.load("digits", PLAIN))
    _ = data.plan
    for line in sys.stdin:
        print(json.dumps(fork_a_life(json.loads(line), data)), flush=True)


if __name__ == "__main__":
    serve()
