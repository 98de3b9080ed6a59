"""What a masked round costs in time: five stages over TLS to four data holders, beside a plain Flower message to four.

    python simulations/benchmarks/latency.py --json

Both are real processes on this machine, one federation after the other: Flower's own SuperLink, four SuperNodes, node
authentication and an app that echoes, asked by `Grid.send_and_receive`; then the federation of the operator's tutorial,
whose rounds say themselves how long they took; then the plain one again, for a machine is not always equally busy.
Medians. Exit 1 when a round takes more than four messages' time.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedlearn.crypto.certificates import Authority, new_node_key, node_key_bytes, node_public_key
from fedlearn.flower.control import Control
from fedlearn.flower.programs import flower_environment, flower_program, free_port, listens
from fedlearn.host.process_tree import adopt_orphans, end_descendants

ROOT = Path(__file__).parents[2]
MOST_MESSAGES_A_ROUND = 4.0
CLIENTS = 4

PLAIN_APP = {
    "plain/__init__.py": "",
    "plain/client.py": """
from flwr.clientapp import ClientApp
from flwr.app import Message

app = ClientApp()


@app.query("echo")
def echo(message, context):
    return Message(message.content, reply_to=message)
""",
    "plain/server.py": """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < context.run_config["clients"]:
        time.sleep(0.5)
    for number in range(context.run_config["messages"]):
        began = time.perf_counter()
        content = RecordDict({"all": ConfigRecord({"bytes": bytes(3000)})})
        asked = [Message(content, node, "query.echo", group_id=str(number)) for node in nodes]
        replies = list(grid.send_and_receive(asked, timeout=120))
        if len(replies) == len(nodes) and not any(reply.has_error() for reply in replies):
            with open(context.run_config["output"], "a") as file:
                print(time.perf_counter() - began, file=file)
""",
    "pyproject.toml": """
[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedlearn"
fab-include = ["plain/*.py"]
[tool.flwr.app.components]
serverapp = "plain.server:app"
clientapp = "plain.client:app"
[tool.flwr.app.config]
messages = 0
clients = 0
output = ""
""",
}


def main() -> int:
    """Measure, print to stderr and, with --json, one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=5, help="before the rounds, and as many after them")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    adopt_orphans()
    try:
        with tempfile.TemporaryDirectory(prefix="fl-", ignore_cleanup_errors=True) as place:
            result = measure(Path(place), given.rounds, given.messages)
    finally:
        end_descendants()
    for name, value in result.items():
        print(f"{name:24} {value}", file=sys.stderr)
    if given.json:
        print(json.dumps(result))
    return 0 if result["messages_a_round"] <= MOST_MESSAGES_A_ROUND else 1


def measure(place: Path, rounds: int, messages: int) -> dict[str, object]:
    """Seconds of each plain message and of each masked round, their medians, and how many of the one the other is."""
    before, load = plain_messages(place / "before", messages), os.getloadavg()[0]
    ours = masked_rounds(place / "ours", rounds)
    loads = [round(load, 1), round(os.getloadavg()[0], 1)]
    plain = before + plain_messages(place / "after", messages)
    message, one_round = statistics.median(plain), statistics.median(ours)
    return {
        "clients": CLIENTS,
        "message_seconds": round(message, 2),
        "round_seconds": round(one_round, 2),
        "messages_a_round": round(one_round / message, 2),
        "all_messages": [round(seconds, 1) for seconds in plain],
        "all_rounds": [round(seconds, 1) for seconds in ours],
        "load_before_and_after_the_rounds": loads,
    }


def plain_messages(place: Path, messages: int) -> list[float]:
    """Seconds of so many messages to four stock SuperNodes, one after the other."""
    place.mkdir()
    authority, port = Authority.new(), free_port()
    pair = authority.server_pair(["localhost", "127.0.0.1"])
    for name, content in (
        ("ca.crt", authority.certificate.pem),
        ("s.crt", pair.certificate.pem),
        ("s.key", pair.key_pem),
    ):
        (place / name).write_bytes(content)
    with running(superlink(port), place / "superlink", home=place / "flwr"):
        wait(lambda: listens(port), "the SuperLink")
        control = Control(f"127.0.0.1:{port}", authority.certificate.pem)
        keys = [new_node_key() for _ in range(CLIENTS)]
        for number, key in enumerate(keys):
            (place / f"{number}.key").write_bytes(key)
            control.register(node_key_bytes(node_public_key(key)))
        with four_nodes(place, port):
            wait(lambda: sum(node.is_online for node in control.nodes()) == CLIENTS, "four nodes")
            seconds = submit_plain(place, port, messages)
        control.close()
    return seconds


def superlink(port: int) -> list[str]:
    """Flower's own, over TLS."""
    files = ["--ssl-certfile", "s.crt", "--ssl-keyfile", "s.key", "--ssl-ca-certfile", "ca.crt"]
    options = ["--enable-supernode-auth", "--disable-runtime-dependency-installation", "--database", "state.db"]
    return [flower_program("flower-superlink"), *files, *options, "--host", "127.0.0.1", "--port", str(port)]


@contextmanager
def four_nodes(place: Path, port: int) -> Iterator[None]:
    """Flower's own nodes."""
    with ExitStack() as nodes:
        for number in range(CLIENTS):
            command = [flower_program("flower-supernode"), "--root-certificates", "ca.crt"]
            command += ["--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            command += ["--auth-supernode-private-key", f"{number}.key"]
            nodes.enter_context(running(command, place / f"node-{number}", home=place / f"flwr-{number}"))
        yield


def submit_plain(place: Path, port: int, messages: int) -> list[float]:
    """Run the echoing app until it has ended; what it measured."""
    for name, text in PLAIN_APP.items():
        (place / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "app" / name).write_text(text)
    (place / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "run"\n[superlink.run]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{place / "ca.crt"}"\n'
    )
    settings = f'messages={messages} clients={CLIENTS} output="{place / "seconds"}"'
    command = [flower_program("flwr"), "run", "app", "run", "--run-config", settings, "--stream"]
    with (place / "run.log").open("wb") as log:
        subprocess.run(command, cwd=place, env=flower_environment(place / "flwr"), stdout=log, stderr=log, timeout=600)
    written = place / "seconds"
    seconds = [float(line) for line in written.read_text().split()] if written.exists() else []
    if len(seconds) != messages:
        raise SystemExit(
            f"{len(seconds)} of {messages} plain messages were answered:\n{(place / 'run.log').read_text()}"
        )
    return seconds


def masked_rounds(place: Path, rounds: int) -> list[float]:
    """Seconds of so many rounds of the operator tutorial's federation, as the coordinator measured them."""
    place.mkdir()
    page = (ROOT / "docs" / "tutorials" / "operator.md").read_text(encoding="utf-8")
    blocks = {name: text for _, name, text in re.findall(r"```(\w*) ([^\n]+)\n(.*?)```", page, re.DOTALL)}
    (place / "holder.toml").write_text(blocks["file=holder.toml"], encoding="utf-8")
    (place / "demo").mkdir()
    begin = blocks["run=federation"].replace("server init", f"server init --port {free_port()}")
    begin = begin.replace("--watch", f"--watch --set run.rounds={rounds} --set privacy.max_participations={rounds + 3}")
    try:
        shell(begin, place)
        (metrics,) = place.glob("demo/operator/server/runs/*/metrics.jsonl")
        return [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()]
    finally:
        shell(blocks["run=end"], place, check=False)


def shell(script: str, place: Path, *, check: bool = True) -> None:
    """Run the page's commands in a folder; the first that fails ends it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-e", "-c", script]
    subprocess.run(command, cwd=place, env=environment, stdout=sys.stderr, timeout=1200, check=check)


@contextmanager
def running(command: list[str], log: Path, *, home: Path) -> Iterator[None]:
    """A program of Flower's for as long as the context is open."""
    home.mkdir(exist_ok=True)
    with log.open("wb") as said:
        environment: Mapping[str, str] = flower_environment(home)
        process = subprocess.Popen(command, cwd=log.parent, env=environment, stdout=said, stderr=said)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def wait(what: Callable[[], bool], name: str, seconds: float = 120.0) -> None:
    """Until it is so."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} did not come up in {seconds:.0f} s")
        time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main())
