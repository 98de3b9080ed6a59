"""A tutorial's federation, word by word: real processes, TLS, four holders, one masked, private run.

Its environment names a proxy in every way, as a hospital's does, and nobody answers there.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.e2e.real_federation import FEDERATION_PAGES, RealFederation
from tests.flower.test_own_socket import everywhere
from tests.pages import name_of, named_blocks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module", params=FEDERATION_PAGES, ids=name_of)
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    blocks = named_blocks(request.param)
    made = RealFederation(
        tmp_path_factory.mktemp("demo"),
        holder=blocks["file=holder.toml"],
        script=blocks["run=federation"],
        ending=blocks["run=end"],
        environment=everywhere("http://127.0.0.1:9"),
    )
    yield made
    made.end()


def test_the_pages_commands_end_in_a_model_and_a_report(federation: RealFederation) -> None:
    done = federation.started
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 5 of 5" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = federation.status()["runs"]
    assert run["state"] == "finished"
    folder = Path(run["folder"])
    written = {path.name for path in folder.iterdir()}
    assert {"config.toml", "roster.toml", "events.jsonl", "certificate.json", "summary.json", "report.html"} <= written
    assert sum(tensor.size for tensor in load_file(folder / "model.safetensors").values()) == 650
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["engine"], summary["private"], summary["masking"]) == ("deployed", True, True)
    assert 0 < summary["guarantees"][0]["epsilon"] <= 3


def test_nothing_of_anybodys_secrets_is_in_a_log(federation: RealFederation) -> None:
    folder = federation.folder
    secrets = [path.read_bytes() for path in folder.glob("demo/*/*/*.key")]
    codes = [line.split()[1].encode() for line in (folder / "demo" / "codes").read_text().splitlines()]
    logs = b"".join(path.read_bytes() for path in folder.rglob("*") if path.suffix in (".log", ".jsonl"))
    assert len(secrets) == 3 + 2 * 4
    assert not [secret for secret in (*secrets, *codes) if secret in logs or secret.hex().encode() in logs]
    assert b"Traceback" not in logs


def test_f20_who_is_revoked_is_out_of_flower_at_once(federation: RealFederation) -> None:
    federation.operator("revoke Dora")
    log = federation.server / "server.log"
    federation.wait(lambda: "a node was taken out of Flower" in log.read_text(), 60)
    members = federation.status()["members"]
    assert members.pop("Dora") == "revoked"
    assert set(members.values()) == {"online"}


def test_a_node_is_up_that_is_let_in_and_no_other(federation: RealFederation) -> None:
    def is_up(name: str) -> bool:
        told = json.loads(federation.client(name, "status --json"))["parts"]["node"]
        assert ("node: up" in federation.client(name, "status")) is told["up"]
        return bool(told["up"])

    federation.wait(lambda: not is_up("Dora"), 60)  # she was revoked above
    assert is_up("Ada")


ASK = """
import ssl, sys, urllib.error, urllib.request
context = ssl._create_unverified_context()
try:
    print(urllib.request.urlopen(sys.argv[1], data=b"", context=context).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/acquire-task"])
def test_nobody_can_start_a_run_or_see_a_node_by_the_port_of_the_nodes(federation: RealFederation, path: str) -> None:
    address = f"https://{federation.status()['address']}{path}"
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable

    def answer(user: int) -> str:
        asked = [python, "-c", ASK, address]
        return subprocess.run(asked, capture_output=True, text=True, user=user, timeout=30, check=True).stdout.strip()

    assert answer(65534) == "403"
    assert answer(os.geteuid()) == "403"
