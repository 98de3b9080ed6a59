"""Processes for messages are forks of SuperExec: fresh in all that matters, and of nothing but Flower and the pipe."""

import json
import subprocess
import sys

import pytest

from tests.faults.test_handler import OF_THE_PIPE

SCRIPT = """
import json, os, signal, subprocess, sys
from flwr.supercore.exit import exit_handler
import flwr.supernode.cli.flwr_clientapp
import fedlearn.flower.node_app
from fedlearn.flower import superexec

def message():
    told = {
        "pid": os.getpid(), "parent": os.getppid(), "argv": sys.argv,
        "handled": signal.getsignal(signal.SIGTERM) != signal.SIG_DFL,
        "exit handlers": len(exit_handler.registered_exit_handlers),
        "command": open("/proc/self/cmdline").read().rstrip(chr(0)).split(chr(0)),
    }
    print(json.dumps(told))
    sys.modules["left_behind"] = os
    raise {"exit": SystemExit(7), "error": ValueError("x")}[sys.argv[-1]]

sys.modules["flwr.supernode.cli.flwr_clientapp"].flwr_clientapp = message
signal.signal(signal.SIGTERM, lambda *_: None)
exit_handler.add_exit_handler(lambda: print("SuperExec's own"))
forking = superexec._Forking()
executor = superexec.altered(subprocess, Popen=forking.popen)
codes, idle = [], [forking.is_idle]
for way in ("exit", "error"):
    executor.Popen(["flwr-clientapp", "--runtime-api-address", "127.0.0.1:1", "--token", "SECRET", way])
    codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
idle.append(forking.is_idle)
started = executor.Popen([sys.executable, "-c", "print('{}')"], stdout=executor.DEVNULL)
left = "left_behind" in sys.modules
print(json.dumps({"pid": os.getpid(), "codes": codes, "other": started.wait(), "left": left, "idle": idle}))
print(json.dumps(sorted(name for name in sys.modules if name.partition(".")[0] in ("fedlearn", "torch", "opacus"))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a client runs on Linux alone")
@pytest.mark.lengthy
def test_a_message_has_a_process_of_its_own_that_inherits_no_handler_no_token_and_nothing_heavy() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    first, second, after, loaded = map(json.loads, ended.stdout.splitlines())
    for told in (first, second):
        assert told["parent"] == after["pid"]
        assert told["pid"] not in (after["pid"], first["pid"] if told is second else None)
        assert told["argv"][:3] == ["flwr-clientapp", "--runtime-api-address", "127.0.0.1:1"]
        assert not told["handled"]
        assert told["exit handlers"] == 0
        assert told["command"][0].startswith("flwr-cl")
        assert "SECRET" not in str(told["command"])
    assert after == {"pid": after["pid"], "codes": [7, 1], "other": 0, "left": False, "idle": [True, False]}
    assert set(loaded) == {*OF_THE_PIPE, "fedlearn.flower.own_socket", "fedlearn.flower.superexec"}
