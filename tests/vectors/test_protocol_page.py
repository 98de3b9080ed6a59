"""docs/protocol.md says what the code does: its tables are compared with it."""

import re
from pathlib import Path

from reference import CONTEXT_FIELDS, label

from fedlearn.crypto.labels import DERIVATION_LABELS, HASH_LABELS, SIGNATURE_LABELS
from fedlearn.secagg.messages import ADVERT_BYTES, BOX_BYTES, MAX_CONFIG_BYTES, REFUSAL
from fedlearn.secagg.transcript import CONTEXT_BYTES, ID_BYTES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "protocol.md").read_text(encoding="utf-8")


def test_offsets_of_the_context_are_those_of_the_reference():
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE, flags=re.MULTILINE)
    offset, expected = 0, []
    for name, size in CONTEXT_FIELDS:
        expected.append((str(offset), name))
        offset += size
    assert rows == [*expected, (str(offset), "stage_seconds")]
    assert offset + 10 == CONTEXT_BYTES


def test_every_label_is_on_the_page():
    for purpose in HASH_LABELS + DERIVATION_LABELS + SIGNATURE_LABELS:
        assert f"`{purpose}`" in PAGE
    assert label("u1").hex(" ") in " ".join(PAGE.split())


def test_sizes_on_the_page_are_those_of_the_code():
    assert f"{ADVERT_BYTES} B" in PAGE
    assert f"{ID_BYTES + BOX_BYTES} B each" in PAGE
    assert MAX_CONFIG_BYTES == 2**20
    assert len(REFUSAL) == 16


def test_every_attack_of_the_threat_model_has_its_test():
    page = (DOCS / "threat-model.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "tests" / "attacks").glob("test_*.py"))
    numbers = re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 20)]
    missing = [number for number in numbers if f"def test_{number}_" not in tests]
    assert missing == ["18"]  # of a deployed agent: the table names its test
