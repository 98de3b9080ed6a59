"""The bundle carries the two thin apps and nothing of the library that protects its holder from it."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from fedlearn.flower.programs import copy_bundle_sources

ALLOWED = {
    ".info/CONTENT",
    "clients/__init__.py",
    "clients/app.py",
    "pyproject.toml",
    "server/__init__.py",
    "server/app.py",
}


def bundle(folder: Path) -> zipfile.ZipFile:
    copy_bundle_sources(folder)
    return zipfile.ZipFile(BytesIO(build_fab_from_disk(folder)))


def test_the_bundle_holds_the_two_apps_and_nothing_else(tmp_path: Path) -> None:
    assert set(bundle(tmp_path / "fedlearn-app").namelist()) == ALLOWED


def test_each_app_is_an_import(tmp_path: Path) -> None:
    built = bundle(tmp_path / "fedlearn-app")
    for party, module in (("clients", "node_app"), ("server", "server_app")):
        source = built.read(f"{party}/app.py").decode()
        statements = [line for line in source.splitlines() if line and not line.startswith('"""')]
        assert statements == [f"from fedlearn.flower.{module} import app", '__all__ = ["app"]']


def test_flwr_build_accepts_both_apps(tmp_path: Path) -> None:
    copy_bundle_sources(tmp_path / "fedlearn-app")
    command = [sys.executable, "-c", "from flwr.cli.app import app; app()", "build", "--app", "fedlearn-app"]
    environment = {"FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.fab"))) == 1


def test_the_process_of_a_message_imports_neither_torch_nor_the_agents() -> None:
    ours = "'fedlearn.holder.context', 'fedlearn.config.run_config'"
    heavy = f"{{'torch', 'opacus', 'ray', 'sklearn', 'dp_accounting', {ours}}}"
    script = f"import sys, fedlearn.flower.node_app; print(sorted({heavy} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "[]"
