"""An older ledger copied back, or one without its count: noticed, refused in one sentence, and never by mistake."""

import json
import shutil
import sqlite3

import pytest
from test_ledger import a_budget, a_release

from fedlearn import durable
from fedlearn.errors import RefusedError
from fedlearn.ledger import Ledger


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "home" / "ledger.db"
    path.parent.mkdir()
    return path


def opened(path, *, rounds=()):
    ledger = Ledger(path)
    a_budget(ledger)
    for number in rounds:
        ledger.release(ledger.reserve([a_release(number)]))
    return ledger


def copied(path, name):
    """A copy of the ledger alone, as a backup makes it."""
    copy = path.parent.parent / name
    shutil.copy(path, copy)
    return copy


def counted(path):
    return json.loads(path.with_name("ledger.db.count").read_bytes())["entries"]


def test_an_older_copy_put_back_is_refused_and_the_newer_file_is_taken_again(path):
    opened(path, rounds=[0]).close()
    older = copied(path, "older.db")
    opened(path, rounds=[1, 2]).close()
    newer = copied(path, "newer.db")
    shutil.copy(older, path)
    with pytest.raises(
        RefusedError, match="older copy, with 3 of the 7 rows that were booked; put the newer file back"
    ):
        Ledger(path)
    shutil.copy(newer, path)
    assert len(Ledger(path).events()) == 3


def test_an_older_copy_that_was_spent_from_elsewhere_is_refused_although_it_is_as_long(path, tmp_path):
    opened(path, rounds=[0]).close()
    shutil.copytree(path.parent, tmp_path / "elsewhere")
    opened(path, rounds=[1]).close()
    opened(tmp_path / "elsewhere" / "ledger.db", rounds=[5, 6]).close()
    shutil.copy(tmp_path / "elsewhere" / "ledger.db", path)
    with pytest.raises(RefusedError, match=r"row 5 is not the one that was booked; .* bring back both files together"):
        Ledger(path)


def test_a_ledger_that_was_deleted_does_not_begin_anew(path):
    opened(path, rounds=[0]).close()
    path.unlink()
    with pytest.raises(RefusedError, match="with 0 of the 3 rows"):
        Ledger(path)
    assert not path.exists()


def test_a_ledger_without_its_count_is_refused(path):
    opened(path, rounds=[0]).close()
    path.with_name("ledger.db.count").unlink()
    with pytest.raises(RefusedError, match=r"3 rows, and no ledger\.db\.count beside it .* bring back both"):
        Ledger(path)


@pytest.mark.parametrize("content", [b"", b"7", b"[]", b'{"entries":0}', b'{"entries": 1}', b"\x80\x04\x95"])
def test_a_damaged_count_is_refused_and_not_replaced(path, content):
    opened(path, rounds=[0]).close()
    path.with_name("ledger.db.count").write_bytes(content)
    with pytest.raises(RefusedError, match="it is damaged"):
        Ledger(path)
    assert path.with_name("ledger.db.count").read_bytes() == content


def test_rows_taken_from_the_end_of_an_open_ledger_are_noticed_before_the_next_is_written(path):
    ledger = opened(path, rounds=[0])
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER entries_no_delete")
        database.execute("DELETE FROM entries WHERE seq = 3")
    database.close()
    with pytest.raises(RefusedError, match="older copy, with 2 of the 3 rows"):
        ledger.reserve([a_release(1)])


def test_a_crash_before_the_count_is_no_false_alarm_and_the_next_opening_counts(path, monkeypatch):
    ledger = opened(path)

    def dies(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(durable.os, "fsync", dies)
        with pytest.raises(RefusedError, match=r"ledger\.db\.count: cannot be written \(No space left on device\)"):
            ledger.reserve([a_release(0)])
    assert counted(path) == 0
    again = Ledger(path)
    assert [booking.released for booking in again.events()] == [False]  # spent, for it may have been used
    assert counted(path) == 2


def test_a_reservation_is_counted_before_it_can_be_used_and_all_is_counted_at_the_end(path):
    ledger = opened(path)
    number = ledger.reserve([a_release(0)])
    assert counted(path) == 2
    ledger.release(number)
    ledger.close()
    assert counted(path) == 3


def test_no_process_counts_fewer_rows_than_another(path):
    first, second = opened(path), opened(path)
    for number in range(0, 8, 2):
        first.release(first.reserve([a_release(number)]))
        second.reserve([a_release(number + 1)])
        assert counted(path) == second.verify_chain()
    first.close()
    assert counted(path) == second.verify_chain()
