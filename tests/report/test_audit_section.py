"""Audits in the report: figures beside the claim, a picture inside the page, and a file that is none is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_by_hand import draw

from fedlearn.audit.pictures import sheet
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError

COMMON = {
    "passed": True,
    "control_passed": True,
    "false_alarm_rate": 0.001,
    "confidence": 0.999,
    "delta": 1e-05,
}
MECHANISM = {
    **COMMON,
    "kind": "mechanism",
    "epsilon_lower": 4.23499,
    "epsilon_claimed": 4.37714,
    "epsilon_booked": 4.72847,
    "control_epsilon_lower": 31.8085,
    "engine_rounds": 64,
    "engine_checks": [{"name": "summed: reach", "passed": True, "found": "0.999 of the bound"}],
    "samples": 200070,
    "planned_cohort": 10,
    "lost": 2,
    "colluders": 1,
}
INVERSION = {
    **COMMON,
    "kind": "inversion",
    "records": 32,
    "cosine_control": 1.0,
    "cosine_sent": -0.01,
    "cosine_aggregate": 0.02,
    "cosine_mean_image": 0.7,
    "picture": "inversion.png",
    "picture_rows": ["records", "rebuilt <script>alert(1)</script>"],
}
MEMBERSHIP = {
    **COMMON,
    "kind": "membership",
    "rates": [
        {
            "false_positive_rate": 0.01,
            "true_positive_rate": 0.034,
            "ceiling": 0.18,
            "control_true_positive_rate": 0.94,
        }
    ],
    "models": 64,
    "canaries": 64,
    "epsilon_claimed": 2.8933,
}


def write_audits(folder: Path, *audits: dict[str, Any], form: str = "fedlearn/v1/audit") -> None:
    about = {"config_hash": hashlib.sha256(RunConfig.load(folder / "config.toml").to_bytes()).hexdigest()}
    (folder / "audit.json").write_text(json.dumps({"format": form, "audits": [about | audit for audit in audits]}))


def page(folder: Path, *audits: dict[str, Any]) -> str:
    write_audits(folder, *audits)
    return draw(folder).read_text(encoding="utf-8")


def test_each_audit_stands_beside_its_claim(write_folder):
    text = page(write_folder(), MECHANISM, INVERSION, MEMBERSHIP)
    for figure in ("at least 4.234", "4.3772 at delta 1e-5", "200,070", "-0.01 from what leaves", "3.4 %", "18.0 %"):
        assert figure in text
    assert text.count(">passed</span>") == 3
    assert "Empirical audit</th><td>Is what leaves" in text


def test_a_picture_is_part_of_the_page_and_nothing_is_loaded(write_folder):
    folder = write_folder()
    (folder / "inversion.png").write_bytes(sheet([np.zeros((2, 8, 8))]))
    text = page(folder, INVERSION)
    assert '<img src="data:image/png;base64,' in text
    assert "default-src 'none'; img-src data:;" in text
    assert "<script" not in text


@pytest.mark.parametrize("content", [b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n" + bytes(1 << 20), None])
def test_what_is_no_small_picture_is_left_out(write_folder, content):
    folder = write_folder()
    if content is not None:
        (folder / "inversion.png").write_bytes(content)
    text = page(folder, INVERSION)
    assert "<img" not in text
    assert "img-src" not in text


def test_a_failed_audit_says_so_and_a_failed_control_more(write_folder):
    folder = write_folder()
    assert "The claim is REFUTED" in page(folder, MECHANISM | {"passed": False, "epsilon_lower": 5.1})
    text = page(folder, MECHANISM | {"passed": False, "control_passed": False})
    assert "this audit shows nothing" in text
    assert "The claim stood" not in text


@pytest.mark.parametrize(
    "audit",
    [
        MECHANISM | {"epsilon_lower": "high"},
        MECHANISM | {"kind": "guess"},
        MECHANISM | {"config_hash": "ab"},
        INVERSION | {"picture": "../../secret.png"},
    ],
)
def test_an_audit_that_is_none_or_of_another_run_is_refused(write_folder, audit):
    folder = write_folder()
    write_audits(folder, audit)
    refused(folder)


def test_a_file_that_holds_no_audits_is_refused(write_folder):
    folder = write_folder()
    for content in ("[]", "{"):
        (folder / "audit.json").write_text(content)
        refused(folder)
    write_audits(folder, MECHANISM, form="fedlearn/v2/audit")
    refused(folder)


def refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.json"):
        draw(folder)
    assert not (folder / "report.html").exists()
