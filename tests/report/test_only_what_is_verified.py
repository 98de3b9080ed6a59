"""A report repeats no guarantee that `fedlearn verify` refuses, and says of a deployed run what each holder signed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_by_hand import certificate_content, draw

from fedlearn import simulate
from fedlearn.certificate.form import encode
from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.conclusion import main as conclude_deployed
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.report import write_failed_page, write_report
from fedlearn.run.checkpoint import RunFolder
from fedlearn.run.failure import raise_failure
from fedlearn.simulation.simulated import coordinator_key

WriteFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a masked run of two rounds."""
    config = RunConfig.load("digits", ["run.rounds=2", "run.spare_rounds=1"])
    return simulate(config, output=tmp_path_factory.mktemp("finished") / "run").run_dir


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it without its page."""
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    (copy / "report.html").unlink()
    (copy / "registry.json").unlink()
    return copy


def sign_anew(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """What a coordinator leaves behind that changes its certificate and signs it."""
    content = json.loads((folder / "certificate.json").read_bytes())
    del content["coordinator"]
    change(content)
    (folder / "certificate.json").write_bytes(encode(content, coordinator_key(folder)))


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        write_report(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "registry.json").exists()


def test_what_a_run_wrote_is_drawn_again(folder: Path, finished: Path) -> None:
    assert write_report(folder).read_bytes() == (finished / "report.html").read_bytes()


def test_a_signed_epsilon_that_the_events_do_not_give_is_not_repeated(folder: Path) -> None:
    sign_anew(folder, lambda content: content["guarantees"][0].update(epsilon="0.100000"))
    refused(folder, r"certificate\.json: .* \(guarantees: epsilon is 0\.100000; what is signed gives")


def test_every_check_that_fails_is_named(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["noise"]["std"] += 1
        content["subject"]["file_sha256"] = "00" * 32

    sign_anew(folder, change)
    refused(folder, "model: the file is another one than the certified model; events: ")


def test_another_model_than_the_certified_one_draws_no_page(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"!")
    refused(folder, "model: the file is another one")
    (folder / "model.safetensors").unlink()
    refused(folder, r"model\.safetensors: cannot be read")


def test_a_masked_run_needs_its_roster(folder: Path) -> None:
    (folder / "roster.toml").unlink()
    refused(folder, r"roster\.toml: cannot be read")


def test_another_configuration_than_the_certified_one_draws_no_page(folder: Path) -> None:
    place = folder / "config.toml"
    place.write_text(place.read_text().replace("seed = 0", "seed = 1"))
    refused(folder, r"another configuration than config\.toml")


def test_a_run_that_is_not_private_has_a_page_that_says_so(tmp_path: Path) -> None:
    config = RunConfig.load("digits", ["run.rounds=1", "privacy.mode=none"])
    page = simulate(config, output=tmp_path / "run").run_dir / "report.html"
    assert "NOT PRIVATE" in page.read_text(encoding="utf-8")


def test_the_page_of_a_deployed_run_shows_no_policy_but_what_each_holder_signed(
    write_folder: WriteFolder, summary_fields: dict[str, Any]
) -> None:
    folder = write_folder(engine="deployed")
    text = draw(folder).read_text(encoding="utf-8")
    assert "ff" * 16 + "</th><td>31 releases booked, configuration 0303030303030303…" in text
    assert "limits.max_" not in text
    assert "accepted: a policy" not in text
    content = certificate_content({**summary_fields, "engine": "deployed"})
    content["ledger"]["attestations"] = []
    (folder / "certificate.json").write_bytes(encode(content, SigningKey(bytes(32))))
    assert "No data holder signed anything." in draw(folder).read_text(encoding="utf-8")


def test_a_deployed_run_that_nobody_attested_is_no_finished_run(folder: Path, tmp_path: Path) -> None:
    for file in ("summary.json", "certificate.json"):
        (folder / file).unlink()
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "key").chmod(0o600)
    assert conclude_deployed(folder, tmp_path / "key") == 4
    assert not (folder / "summary.json").exists(), "whoever serves would book it as finished"
    assert not (folder / "certificate.json").exists()
    with pytest.raises(RunFailedError, match="none of its 10 data holders attested"):
        raise_failure(RunFolder(folder))


def test_the_page_of_a_failed_run_says_why_and_states_no_guarantee(tmp_path: Path) -> None:
    write_failed_page(tmp_path, name="heart <b>", reason="3 of 4 are away; see <script>")
    page = (tmp_path / "report.html").read_text()
    assert "This run failed: 3 of 4 are away; see &lt;script&gt;" in page
    assert "heart &lt;b&gt;" in page
    assert "NO GUARANTEE IS STATED" in page
    assert "psilon" not in page.partition("</style>")[2]
