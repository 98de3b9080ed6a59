"""Rules about the house itself: light imports, public names, short modules, everything documented."""

import ast
import importlib
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from typer.main import get_command

import fedlearn
from fedlearn import errors
from fedlearn.cli import app
from fedlearn.cli.options import print_json
from fedlearn.config.run_config import REGISTRY_NAMES, ColumnConfig, RunConfig
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.stages import STAGES

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "fedlearn").rglob("*.py"))
HEAVY = ("torch", "flwr", "opacus", "dp_accounting", "sklearn", "scipy", "ray", "pandas", "matplotlib")
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md")]
}
DOCUMENTED = "\n".join(DOCUMENTS.values())
CONFIGURATION = DOCUMENTS["docs/configuration.md"]


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `statement`."""
    code = (
        f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(ended.stdout)) & set(HEAVY)


@pytest.mark.parametrize(
    "statement",
    ["import fedlearn", "import fedlearn.cli", "import fedlearn.config.run_config", "dir(__import__('fedlearn'))"],
)
def test_the_surface_is_light(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_what_an_auditor_imports_needs_no_gpu_stack() -> None:
    rooms = ("crypto.keystream", "ledger", "privacy.calibration", "privacy.discrete_gaussian", "privacy.sampling")
    assert not loaded_by("import " + ", ".join(f"fedlearn.{room}" for room in rooms)) & {
        "torch",
        "flwr",
        "opacus",
        "ray",
    }


def test_no_json_is_written_that_may_say_nan() -> None:
    """Python writes NaN and Infinity, which are not JSON, unless it is told not to."""
    found, may = 0, []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("json.dumps", "json.dump", "dumps"):
                continue
            found += 1
            if not any(word.arg == "allow_nan" and ast.unparse(word.value) == "False" for word in node.keywords):
                may.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found > 10
    assert may == []


def test_a_command_prints_json_by_one_function_alone() -> None:
    for path in (ROOT / "fedlearn" / "cli").glob("*.py"):
        assert not re.search(r"echo\(json|print\(json", path.read_text(encoding="utf-8")), path.name


def test_what_a_command_prints_is_json_by_the_standard(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    print_json({"loss": math.nan, "of": [1.5, -math.inf, ("x", math.inf)]})
    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed == {"loss": None, "of": [1.5, None, ["x", None]]}


def test_public_names_are_sorted_and_resolve() -> None:
    assert fedlearn.__all__ == sorted(fedlearn.__all__)
    for name in fedlearn.__all__:
        assert getattr(fedlearn, name).__name__ == name
    assert set(fedlearn.__all__) < set(dir(fedlearn))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedlearn.nothing


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    assert text.startswith('"""')
    assert path.stem not in ("utils", "common", "base", "manager", "misc", "helpers")
    assert len(path.relative_to(ROOT / "fedlearn").parts) <= 3


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_names_that_a_module_offers_are_sorted_and_exist(path: Path) -> None:
    declared = re.search(r"^__all__ = (\[.*?\])$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if declared is None or path.name == "__main__.py":
        return
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
    constants_first = sorted(module.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert module.__all__ == constants_first
    assert all(hasattr(module, name) for name in module.__all__)


def keys() -> list[str]:
    return [
        f"{section}.{key}"
        for section, field in RunConfig.model_fields.items()
        for key in getattr(field.annotation, "model_fields", {})
    ]


@pytest.mark.parametrize("key", keys())
def test_every_key_has_its_row(key: str) -> None:
    assert f"\n| `{key}` | " in CONFIGURATION


def test_no_row_is_about_a_key_that_does_not_exist() -> None:
    assert set(re.findall(r"^\| `([a-z_]+\.[a-z_]+)`", CONFIGURATION, re.MULTILINE)) == set(keys())


def test_every_key_of_a_column_is_documented() -> None:
    assert all(f"`{key}`" in CONFIGURATION for key in ColumnConfig.model_fields)


@pytest.mark.parametrize("key", keys())
def test_a_documented_default_is_the_default(key: str) -> None:
    section, _, field_name = key.partition(".")
    field = getattr(RunConfig.model_fields[section].annotation, "model_fields")[field_name]  # noqa: B009
    default = re.search(rf"^\| `{re.escape(key)}` \| [^|]* \| ([^|]*) \|", CONFIGURATION, re.MULTILINE)
    assert default is not None
    has_none = default.group(1).startswith("-") or default.group(1) == "the data set's own"
    assert has_none == (field.is_required() or field.default is None or field_name == "columns")


@pytest.mark.parametrize("name", sorted({name for names in REGISTRY_NAMES.values() for name in names}))
def test_every_entry_of_a_registry_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCUMENTED


@pytest.mark.parametrize("name", errors.__all__)
def test_every_exception_and_exit_code_is_documented(name: str) -> None:
    row = re.search(rf"^\| `{name}`[^|]*\| (\S+) \|", DOCUMENTS["docs/errors.md"], re.MULTILINE)
    assert row is not None
    assert row.group(1) == ("-" if name == "ProtocolError" else str(getattr(errors, name).exit_code))
    assert re.search(rf"\b{name}\b", errors.__doc__ or "")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 130])
def test_every_exit_code_is_documented(code: int) -> None:
    assert re.search(rf"^\| {code} \| ", DOCUMENTS["docs/errors.md"], re.MULTILINE)


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    if isinstance(command, click.Group):
        for word, below in command.commands.items():
            yield from commands(below, f"{name} {word}")
    else:
        yield name, command


def test_every_command_and_option_is_documented() -> None:
    found = dict(commands(get_command(app), "fedlearn"))
    assert len(found) >= 3
    for name, command in found.items():
        assert name in DOCUMENTED
        for option in (option for parameter in command.params for option in parameter.opts if option.startswith("--")):
            assert option in DOCUMENTED, f"{name} {option}"


@pytest.mark.parametrize("number", range(1, 22))
def test_every_error_that_frameworks_make_has_its_test(number: int) -> None:
    """R1 to R21 of docs/specification/privacy.md 9: a test of that number shows that ours is right."""
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert re.search(rf"^ *def test_r{number:02}_", tests, re.MULTILINE)


@pytest.mark.parametrize("number", [*range(1, 12), 19, 21])
def test_every_fault_of_messages_and_nodes_has_its_test(number: int) -> None:
    """F1 to F11, F19 and F21 of docs/specification/faults.md 2: a test of that number shows what it costs."""
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert re.search(rf"^ *def test_(f\d+_)*f{number}_", tests, re.MULTILINE)


def test_help_is_quick() -> None:
    """At most half a second, the best of three; of the processor, so that a busy machine does not fail it."""
    import resource

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "fedlearn.cli", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    started = time.monotonic()
    best = min(seconds() for _ in range(3))
    assert best <= 0.5, f"{best:.2f} s of the processor; {time.monotonic() - started:.2f} s for three"


def test_imports_point_down() -> None:
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


# Where a word of a list is at home; whoever else needs to know asks it, or a new entry would have to be told to all.
AT_HOME = {
    "privacy mode": (set(MECHANISMS), {"privacy/mechanisms.py", "config/run_config.py"}),
    "source of noise": (
        {mechanism.noise.name for mechanism in MECHANISMS.values()},
        {"privacy/noise_sources.py"},
    ),
    "kind of work": ({mechanism.work.name for mechanism in MECHANISMS.values()}, {"privacy/works.py"}),
    "stage": (set(STAGES), {"stages.py"}),
}


def compared(path: Path) -> set[str]:
    """Words that a module compares something with, or tells cases by."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare | ast.MatchValue):
            found |= {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    return {word for word in found if isinstance(word, str)}


@pytest.mark.parametrize("what", AT_HOME)
def test_a_word_is_compared_at_home_alone(what: str) -> None:
    words, home = AT_HOME[what]
    guests = {path for path in MODULES if path.relative_to(ROOT / "fedlearn").as_posix() not in home}
    assert not {(path.name, word) for path in guests for word in compared(path) & words}
