"""The page is one inert, well-formed file; the same folder gives the same bytes; a broken folder is one sentence."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_by_hand import draw

from fedlearn.errors import ConfigError

WriteFolder = Callable[..., Path]

EVENT_OF_NO_KIND = json.dumps(
    {
        "round": 1,
        "attempt": 0,
        "asked": 10,
        "survivors": 10,
        "aborted": False,
        "event": {"count": 1, "eta": "0", "mechanism": "?", "noise_multiplier": "8.5", "sampling_probability": "1"},
    }
)
VOID = {"meta", "wbr", "br", "link", "img", "hr"}


class _Reader(HTMLParser):
    """Keeps open tags on a stack, and collects attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(page: Path) -> _Reader:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    return reader


@pytest.fixture(
    params=[
        {},
        {"mode": "none", "private": False, "guarantees": [], "noise": "none"},
        {"accuracy": None, "loss": None, "confusion": [], "per_class": [], "metrics": [], "test_records": None},
        {"warnings": [], "unprotected": [], "policy": {}, "plan": {}, "events": []},
    ],
    ids=["private", "not-private", "not-evaluated", "sparse"],
)
def any_page(request: pytest.FixtureRequest, write_folder: WriteFolder) -> Path:
    return draw(write_folder(**request.param))


def test_tags_are_balanced(any_page: Path) -> None:
    reader = read(any_page)
    assert not reader.unbalanced
    assert not reader.open


def test_nothing_is_loaded_from_anywhere(any_page: Path) -> None:
    text = any_page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<script|<link|<img|<iframe", text)
    for tag, attributes in read(any_page).tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert not any(name.startswith("on") for name in attributes), tag


def test_page_forbids_the_browser_to_load_anything(any_page: Path) -> None:
    assert "default-src 'none'" in any_page.read_text(encoding="utf-8")


def test_every_picture_and_table_has_words(any_page: Path) -> None:
    tags = read(any_page).tags
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags)
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in tags if tag == "th")


def test_ids_are_unique_and_labels_point_to_them(any_page: Path) -> None:
    tags = read(any_page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes} <= set(ids)


def test_headline_numbers_are_shown(write_folder: WriteFolder) -> None:
    text = read(draw(write_folder())).text
    for shown in ("Accuracy 94.2 % on 360 public", "Epsilon, at most 2.9265 Record-level", "Delta 1e-5", "Rounds 30"):
        assert shown in text


def test_curves_tell_their_ends_to_a_screen_reader(write_folder: WriteFolder) -> None:
    labels = [attributes["aria-label"] for tag, attributes in read(draw(write_folder())).tags if tag == "svg"]
    assert len(labels) == 3
    assert (
        labels[2]
        == "Epsilon spent (one record, delta 1e-5) over rounds: 0.5343 in round 1 to 2.9265 in round 30, target 3."
    )


def test_configuration_plan_policy_and_versions_are_shown(write_folder: WriteFolder) -> None:
    text = read(draw(write_folder())).text.replace("_ ", "_")
    for shown in ("server_momentum", "noise_multiplier 8.5", "limits.max_dimension 650", "torch 2.13.0"):
        assert shown in text
    assert text.count("summed gaussian 8.500000") == 30
    assert text.count("aborted gaussian 8.500000") == 1


def test_html_in_names_is_inert(write_folder: WriteFolder) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    classes = [evil, *(str(number) for number in range(1, 10))]
    page = draw(write_folder(scenario=evil, classes=classes, warnings=[evil], versions={evil: evil}, engine=evil))
    assert not {tag for tag, _ in read(page).tags} & {"script", "img"}
    assert evil in read(page).text


def test_not_evaluated_is_said_in_words(write_folder: WriteFolder) -> None:
    folder = write_folder(accuracy=None, loss=None, confusion=None, per_class=None, metrics=[], test_records=None)
    text = read(draw(folder)).text
    assert "Accuracy not evaluated" in text
    assert "Confusion matrix" not in text


def test_not_private_is_said_in_large_letters(write_folder: WriteFolder) -> None:
    page = draw(write_folder(mode="none", private=False, guarantees=[], noise="none"))
    assert "<strong>NOT PRIVATE</strong>" in page.read_text(encoding="utf-8")
    assert "Epsilon none not private" in read(page).text


def test_private_run_does_not_say_not_private(write_folder: WriteFolder) -> None:
    assert "NOT PRIVATE" not in read(draw(write_folder())).text


def test_weak_guarantee_is_called_weak(
    write_folder: WriteFolder, summary_fields: dict[str, list[dict[str, object]]]
) -> None:
    weak = {**summary_fields["guarantees"][0], "epsilon": 10.5}
    text = read(draw(write_folder(guarantees=[weak]))).text
    assert "10.5 Record-level · weak" in text
    assert "weak: epsilon is above 10" in text


def test_same_folder_gives_the_same_bytes(write_folder: WriteFolder) -> None:
    first = draw(write_folder(name="first")).read_bytes()
    second_page = draw(write_folder(name="second"))
    assert second_page.read_bytes() == first
    assert draw(second_page.parent).read_bytes() == first


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_no_runs(write_folder: WriteFolder, number: str) -> None:
    folder = write_folder()
    file = folder / "metrics.jsonl"
    file.write_text(file.read_text() + f'{{"loss": {number}}}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line \d+: expected JSON"):
        draw(folder)


def test_loss_that_diverged_is_a_gap_not_a_crash(write_folder: WriteFolder) -> None:
    lines = [
        {"round": n, "attempt": 0, "asked": 10, "survivors": 10, "loss": v, "accuracy": 0.1, "epsilon": 1, "seconds": 1}
        for n, v in ((1, 2.0), (2, None), (3, None))
    ]
    text = draw(write_folder(metrics=lines, loss=None)).read_text(encoding="utf-8")
    assert "Loss (public held-out data) over rounds: 2 in round 1." in text


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [0.5, 0.5, 0.5], [1e-9, 1e9], [0.5] * 3000])
def test_any_run_can_be_drawn(write_folder: WriteFolder, values: list[float]) -> None:
    base = {"attempt": 0, "asked": 10, "survivors": 10, "accuracy": min(1, values[0]), "epsilon": 1, "seconds": 1}
    page = draw(write_folder(metrics=[{**base, "round": n, "loss": v} for n, v in enumerate(values, 1)]))
    assert sum(tag == "svg" for tag, _ in read(page).tags) == 3


@pytest.mark.parametrize("name", ["config.toml", "summary.json", "metrics.jsonl", "events.jsonl", "certificate.json"])
def test_missing_file_is_one_sentence_that_names_it(write_folder: WriteFolder, name: str) -> None:
    folder = write_folder()
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing; expected the folder of a run"):
        draw(folder)


def test_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run folder"):
        draw(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "body", "sentence"),
    [
        ("summary.json", '{"format":', "summary.json: expected JSON"),
        ("summary.json", "[1]", "summary.json: expected a JSON object"),
        ("summary.json", "{}", "summary.json: the section format is missing"),
        ("metrics.jsonl", '{"round": 1}\n', "metrics.jsonl, line 1: the section attempt is missing"),
        ("events.jsonl", "\n{cut", "events.jsonl, line 2: expected JSON"),
        ("events.jsonl", EVENT_OF_NO_KIND, "events.jsonl: an event is"),
        ("config.toml", "[run", "config.toml: expected a TOML file"),
    ],
)
def test_broken_file_is_one_sentence(write_folder: WriteFolder, name: str, body: str, sentence: str) -> None:
    folder = write_folder()
    (folder / name).write_text(body)
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        draw(folder)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_text_are_one_sentence(write_folder: WriteFolder) -> None:
    folder = write_folder()
    (folder / "summary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        draw(folder)


def test_private_run_without_a_guarantee_is_refused(write_folder: WriteFolder) -> None:
    with pytest.raises(ConfigError, match="contradicts itself; expected guarantees in certificate"):
        draw(write_folder(guarantees=[]))


def test_guarantee_of_another_relation_is_refused(
    write_folder: WriteFolder, summary_fields: dict[str, list[dict[str, object]]]
) -> None:
    other = {**summary_fields["guarantees"][0], "neighboring_relation": "REPLACE_ONE"}
    with pytest.raises(ConfigError, match="the unit's own relation"):
        draw(write_folder(guarantees=[other]))


def test_matrix_that_does_not_fit_the_classes_is_refused(write_folder: WriteFolder) -> None:
    with pytest.raises(ConfigError, match="square confusion matrix"):
        draw(write_folder(confusion=[[1, 2]]))


def test_refused_folder_keeps_its_old_page_and_no_scraps(write_folder: WriteFolder) -> None:
    folder = write_folder()
    before = draw(folder).read_bytes()
    (folder / "summary.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError):
        draw(folder)
    assert (folder / "report.html").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
