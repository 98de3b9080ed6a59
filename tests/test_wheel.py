"""A wheel alone, in an empty folder, does what a checkout does."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import fedlearn
from fedlearn.host.shipped import scenario_names, shipped_root

CHECKOUT = Path(fedlearn.__file__).resolve().parents[1]
SHIPPED = "fedlearn/_shipped/"

in_a_checkout = pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").is_file(), reason="needs the checkout")


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(CHECKOUT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(command: list[str | Path], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={"HOME": str(folder), "PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@in_a_checkout
def test_the_wheel_carries_apps_scenarios_and_description_and_no_benchmark(tmp_path: Path) -> None:
    names = set(zipfile.ZipFile(build_wheel(tmp_path)).namelist())
    shipped = {name.removeprefix(SHIPPED) for name in names if name.startswith(SHIPPED)}
    apps = {f"{party}/{name}" for party in ("clients", "server") for name in ("__init__.py", "app.py")}
    scenarios = {f"simulations/{name}.toml" for name in scenario_names()}
    assert shipped >= apps | scenarios | {"pyproject.toml", "LICENSE", "requirements.lock"}
    assert not [name for name in names if "benchmark" in name or "tests/" in name or name.endswith(".pyc")]
    assert all(name.endswith(".toml") for name in shipped if name.startswith("simulations/"))


@in_a_checkout
def test_the_checkout_beside_the_package_is_found() -> None:
    assert shipped_root() == CHECKOUT


def test_the_files_inside_an_installed_package_are_found(tmp_path: Path) -> None:
    package = tmp_path / "site" / "fedlearn"
    (package / "_shipped" / "simulations").mkdir(parents=True)
    (package / "_shipped" / "simulations" / "mine.toml").touch()
    (package / "__init__.py").touch()
    (package / "host").mkdir()
    for name in ("__init__.py", "shipped.py"):
        (package / "host" / name).write_text((CHECKOUT / "fedlearn" / "host" / name).read_text())
    script = "from fedlearn.host import shipped; print(shipped.shipped_root(), shipped.scenario_names())"
    told = run([sys.executable, "-c", script], tmp_path, PYTHONPATH=str(package.parent))
    assert told.split() == [str(package / "_shipped"), "['mine']"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@in_a_checkout
def test_a_wheel_alone_runs_the_demo_in_an_empty_folder(tmp_path: Path) -> None:
    python = install(build_wheel(tmp_path), tmp_path / "environment")
    folder = tmp_path / "empty"
    folder.mkdir()
    where = run([python, "-c", "import fedlearn; print(fedlearn.__file__)"], folder).strip()
    assert Path(where).is_relative_to(tmp_path / "environment")
    told = json.loads(run([python.with_name("fedlearn"), "simulate", "--json"], folder).splitlines()[-1])
    assert told["accuracy"] >= 0.91
    assert (folder / told["run_dir"] / "report.html").is_file()
    assert run([python.with_name("fedlearn"), "simulate", "--list"], folder).startswith(tuple(scenario_names()))


@pytest.mark.slow
@pytest.mark.timeout(400)
@in_a_checkout
def test_a_wheel_alone_builds_its_bundle_and_runs_on_ray(tmp_path: Path) -> None:
    python = install(build_wheel(tmp_path), tmp_path / "environment")
    programs(python)
    command = [python.with_name("fedlearn"), "simulate", "--engine", "ray", "--set", "run.rounds=2", "--json"]
    told = json.loads(run(command, tmp_path).splitlines()[-1])
    assert told["rounds"] == 2


def install(wheel: Path, environment: Path) -> Path:
    """The Python of a new environment that holds the wheel and sees this one's packages, but not its checkout."""
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], environment).strip())
    # Path files of the folder named here are not read, so neither is the one of an editable install.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*command, "--quiet"], check=True, capture_output=True, timeout=120)
    return python


def programs(python: Path) -> None:
    """Flower's programs for the environment of `python`: those of this one would import this one's fedlearn."""
    entries = Path(sysconfig.get_path("purelib")).glob("flwr-*.dist-info/entry_points.txt")
    for line in next(entries).read_text().splitlines():
        name, _, target = line.partition(" = ")
        if target:
            module, _, function = target.partition(":")
            program = python.with_name(name)
            program.write_text(f"#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
            program.chmod(0o755)


@in_a_checkout
def test_the_bundle_is_described_by_the_file_that_ships() -> None:
    described = tomllib.loads((shipped_root() / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert described["components"] == {"serverapp": "server.app:app", "clientapp": "clients.app:app"}
