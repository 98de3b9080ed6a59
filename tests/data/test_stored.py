"""The fingerprint of a set of stored rows: the same for the same rows, and nothing without the salt."""

import pytest

from fedlearn.data.readers import read_csv
from fedlearn.data.stored import fingerprint_of, fingerprint_of_name

SALT = bytes(range(32))
ROWS = ["1,x,0", "3,y,1", "3,y,0", "broken"]


@pytest.fixture
def of(tmp_path):
    def fingerprint(rows, header="a,b,ill", salt=SALT):
        (tmp_path / "rows.csv").write_text("\n".join([header, *rows]) + "\n")
        return fingerprint_of(read_csv(tmp_path / "rows.csv"), salt)

    return fingerprint


def test_the_same_rows_in_another_order_have_the_same_fingerprint(of):
    assert of(ROWS[::-1]) == of(ROWS)
    assert of(["x,1,0", "y,3,1", "y,3,0", "broken"], "b,a,ill") == of(ROWS)


@pytest.mark.parametrize(
    "other", [ROWS[1:], [*ROWS, "3,y,0"], ["2,x,0", *ROWS[1:]], [*ROWS[:3], "other"], [*ROWS, "broken"], []]
)
def test_one_row_more_less_or_changed_gives_another(of, other):
    assert of(other) != of(ROWS)


def test_another_salt_gives_another(of):
    assert len({of(ROWS, salt=bytes([byte]) * 32) for byte in range(5)}) == 5
    assert len({fingerprint_of_name("digits", bytes([byte]) * 32) for byte in range(5)}) == 5


def test_a_data_set_that_ships_is_known_by_its_name():
    assert fingerprint_of_name("digits", SALT) == fingerprint_of_name("digits", SALT)
    assert fingerprint_of_name("digits", SALT) != fingerprint_of_name("breast-cancer", SALT)
