"""Checklist, registry entry and page say what the certificate says, and "not claimed" where it says nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_by_hand import certificate_content, draw

from fedlearn.certificate.form import encode, parse
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import ConfigError
from fedlearn.report.certified import Certified
from fedlearn.report.disclosures import disclosures
from fedlearn.report.registry import registry_entries

WriteFolder = Callable[..., Path]

NOTHING: dict[str, Any] = {
    "guarantees": [],
    "events": [],
    "secure_aggregation": None,
    "unprotected": [],
    "scores": None,
    "versions": {},
}


def answers(content: dict[str, Any], audit: str | None = None) -> dict[str, str | None]:
    certified = Certified.of(parse(encode(content, SigningKey(bytes(32)))))
    return {line.topic: line.answer for line in disclosures(certified, audit=audit)}


def test_fifteen_disclosures_are_filled_from_the_certificate(summary_fields: dict[str, Any]) -> None:
    told = answers(certificate_content({**summary_fields, "masking": True}), audit="attacked")
    assert len(told) == 15
    assert None not in told.values()
    assert "0.655041-GDP, zCDP rho 0.21454" in str(told["Accounting"])
    assert "31 releases booked in 31 attempts" in str(told["Mechanism as executed"])
    assert "3 replies missing" in str(told["Drop-outs"])
    assert "30 transcripts" in str(told["Security and software"])


def test_what_the_certificate_does_not_say_is_not_claimed(summary_fields: dict[str, Any]) -> None:
    told = answers({**certificate_content(summary_fields), **NOTHING})
    assert [topic for topic, answer in told.items() if answer is not None] == ["Limits, date, signatures"]


@pytest.mark.parametrize(
    ("removed", "topics"),
    [
        ("secure_aggregation", {"Security and software"}),
        ("unprotected", {"Unprotected quantities"}),
        ("scores", {"Utility"}),
        ("versions", {"Security and software"}),
    ],
)
def test_each_disclosure_follows_its_part(summary_fields: dict[str, Any], removed: str, topics: set[str]) -> None:
    content = certificate_content({**summary_fields, "masking": True})
    whole, left = answers(content), answers({**content, removed: NOTHING[removed]})
    assert {topic for topic in whole if whole[topic] != left[topic]} == topics


def test_secret_cohorts_are_not_counted(summary_fields: dict[str, Any]) -> None:
    content = certificate_content(summary_fields)
    hidden = [{**line, "asked": None, "survived": None} for line in content["events"]]
    assert "stays with the server" in str(answers({**content, "events": hidden})["Drop-outs"])


def test_a_registry_entry_stands_beside_the_page(write_folder: WriteFolder) -> None:
    folder = draw(write_folder(masking=True)).parent
    (entry,) = json.loads((folder / "registry.json").read_text())["deployments"]
    deployment = entry["deployment"]
    assert deployment["privacy_loss"]["privacy_parameters"] == {"epsilon": 2.926459, "delta": 1e-05}
    assert "No person's records lie at two clients." in deployment["implementation"]["justification"]
    assert "Which clients took part" in deployment["dp_flavor"]["unprotected_quantities"]
    assert deployment["data_curator"] is None


def test_a_run_that_is_not_private_has_no_entry(summary_fields: dict[str, Any]) -> None:
    bare = certificate_content({**summary_fields, "guarantees": [], "mode": "none"})
    assert registry_entries(Certified.of(bare)) == {"deployments": []}


def test_a_certificate_that_was_changed_draws_no_page(write_folder: WriteFolder) -> None:
    folder = write_folder()
    body = (folder / "certificate.json").read_bytes()
    (folder / "certificate.json").write_bytes(body.replace(b'"epsilon":"2.926459"', b'"epsilon":"0.926459"'))
    with pytest.raises(ConfigError, match="signature does not hold"):
        draw(folder)
    (folder / "certificate.json").write_bytes(body + b"\n")
    with pytest.raises(ConfigError, match="not canonical JSON"):
        draw(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "registry.json").exists()


def test_the_page_shows_who_signed_and_who_attested(write_folder: WriteFolder, summary_fields: dict[str, Any]) -> None:
    folder = write_folder()
    content = certificate_content({**summary_fields, "engine": "deployed"})
    body = encode(content, SigningKey(bytes(range(32))))
    (folder / "certificate.json").write_bytes(body)
    page = draw(folder).read_text(encoding="utf-8")
    for shown in (SigningKey(bytes(range(32))).public.hex(), "ff" * 16, "0 members not confirmed", "fedlearn verify"):
        assert shown in page
