"""The one reader of what comes from elsewhere answers hostile bytes with a sentence, within seconds."""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import fedlearn
from fedlearn.bounded import read_bytes, read_json, read_number, read_tensors
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.ledger.budget import Budget
from fedlearn.ledger.rows import members_of
from fedlearn.policy.roster import Roster
from fedlearn.privacy.accounting import Event
from fedlearn.run.checkpoint import RunFolder
from fedlearn.toml import parse_toml

HOSTILE_JSON = {
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep tables": b'{"a":' * 50_000,
    "deep behind a quote": b'{"\\"":' + b"[" * 100_000,
    "a long integer": b"[" + b"9" * 4_000 + b"]",
    "not a number": b"[NaN]",
    "infinite": b"[1e999]",
    "not text": b'"\xff"',
    "cut off": b'{"a":',
}
HOSTILE_TOML = {
    "deep lists": b"a = " + b"[" * 100_000,
    "deep tables": b"a = " + b"{a=" * 100_000,
    "a long key": b"a." * 50_000 + b"a = 1",
    "a long heading": b"[" + b'"a".' * 50_000 + b"a]",
    "a long key inside": b"x = {b = '\"', " + b"a." * 50_000 + b"a = 1}",
    "a long key of quoted parts": (b"a." * 40 + b"'='.") * 600 + b"a = 1",
    "a long key behind quotes": b'x = {b = """q"""", ' + b"a." * 50_000 + b'a = 1, z = "1"}',
    "a long integer": b"a = " + b"9" * 100_000,
    "an integer of more bits": b"a = 0x" + b"f" * 100_000,
    "not a number": b"a = nan",
    "infinite": b"a = [1e999]",
    "not text": b"a = '\xff'",
}


@pytest.mark.parametrize("body", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_json_is_one_sentence_at_once(body):
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"^the file [^\n]*$"):
        read_json(body, what="the file")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("body", HOSTILE_TOML.values(), ids=HOSTILE_TOML)
def test_hostile_toml_is_one_sentence_at_once(body, tmp_path):
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"^the file"):
        parse_toml(body, place="the file")
    with pytest.raises(ConfigError, match=r"roster"):
        Roster.from_bytes(body)
    (tmp_path / "run.toml").write_bytes(body)
    with pytest.raises(ConfigError, match=r"run\.toml"):
        RunConfig.load(tmp_path / "run.toml")
    assert time.process_time() - began < 4


def test_brackets_in_texts_are_no_depth():
    assert read_json(b'["' + b"[" * 100 + b'\\"{{"]', what="it") == ["[" * 100 + '"{{']


def test_a_text_may_have_many_dots():
    text = "a." * 100
    assert parse_toml(f"x = '{text}' # {text}\n".encode(), place="it") == {"x": text}


def test_toml_with_a_byte_order_mark_is_read():
    assert parse_toml(b"\xef\xbb\xbfa = 1\n", place="it") == {"a": 1}


@pytest.mark.parametrize("text", ["1e100000000", "9" * 400, "nan", "inf", "1e999", "0x1", "", None, 3])
def test_a_number_is_a_short_finite_decimal(text):
    with pytest.raises(ValueError, match=r"expected a decimal number|not finite"):
        read_number(text)


@pytest.mark.parametrize("number", [1e-5, 3.0, 1e22, 5e-324, 1.7976931348623157e308, 0.1 + 0.2])
def test_every_float_that_a_configuration_writes_is_read_back(number):
    assert read_number(repr(number)) == number


GOOD = save({"w": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        GOOD[:7],
        GOOD[:-1],
        b"\xff" * 8 + GOOD[8:],
        (1 << 40).to_bytes(8, "little") + GOOD[8:],
        GOOD.replace(b"[2,3]", b"[9,9]"),
        GOOD.replace(b'"F32"', b'"XXX"'),
        save({"w": np.zeros(3, np.float64)}),
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_what_is_no_model_file_is_one_sentence(body):
    with pytest.raises(ConfigError, match=r"^the model"):
        read_tensors(body, what="the model")


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"cannot be read"):
            read_bytes(path)
    (tmp_path / "long").write_bytes(bytes(100))
    with pytest.raises(ConfigError, match=r"more than 99 bytes"):
        read_bytes(tmp_path / "long", most=99)


@pytest.mark.parametrize("read", [Event.from_bytes, Budget.from_bytes, members_of], ids=["event", "budget", "members"])
def test_a_row_of_a_ledger_that_is_nested_too_deep_is_a_sentence(read: Callable[[bytes], object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        read(b"[" * 100_000 + b"]" * 100_000)


def test_a_small_file_takes_little_memory_whatever_it_may_have(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"x")
    program = (
        "import pathlib, resource, sys; from fedlearn.bounded import MOST_MODEL_BYTES, read_bytes;"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30));"
        "print(read_bytes(pathlib.Path(sys.argv[1]), most=MOST_MODEL_BYTES))"
    )
    ran = subprocess.run([sys.executable, "-c", program, tmp_path / "model"], capture_output=True, check=True)
    assert ran.stdout == b"b'x'\n"


# What reads bytes of somebody else's by itself, and why it may: its own output, or a line whose failure is its answer.
READS_BY_ITSELF = {
    "bounded.py": "the reader",
    "toml.py": "the reader",
    "round/tally.py": "a file without a name that only this run's own processes write",
    "cli/client.py": "what it has just written",
    "config/run_config.py": "what it has just written",
    "deployment/background.py": "a line that this machine's own process logged",
    "deployment/doctor/installation.py": "the pyproject.toml beside this program",
    "deployment/parts.py": "a line that this machine's own process logged",
    "deployment/supervisor.py": "a line that this machine's own process logged",
    "config/overrides.py": "a word that the user typed",
    "run/trained.py": "what it has just written",
}
READERS = {"json.loads", "json.load", "tomllib.loads", "tomllib.load", "safe_open", "load", "load_file"}


def test_nothing_else_reads_json_toml_or_safetensors() -> None:
    root = Path(fedlearn.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            name.asname or name.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("json", "safetensors", "tomllib"))
            for name in node.names
        }
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if {name for name in called & READERS if "." in name or name in imported}:
            found.add(path.relative_to(root).as_posix())
    assert found == set(READS_BY_ITSELF)


@pytest.mark.parametrize("body", [HOSTILE_JSON["deep lists"], HOSTILE_JSON["a long integer"]], ids=["deep", "long"])
def test_a_line_of_a_run_folder_is_read_in_bounds(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(body + b"\n")
    with pytest.raises(ConfigError, match=r"events\.jsonl: a line"):
        RunFolder(tmp_path).lines("events.jsonl")


def test_a_checkpoint_is_read_in_bounds(tmp_path: Path) -> None:
    for about in ("[" * 100_000, '{"session": ' + "9" * 5_000 + "}"):
        (tmp_path / "checkpoint.safetensors").write_bytes(save({"weights": np.zeros(3)}, {"progress": about}))
        with pytest.raises(ConfigError, match=r"checkpoint\.safetensors is damaged"):
            RunFolder(tmp_path).load_checkpoint()
