"""An older ledger copied back, or one without its count: noticed, refused in one sentence, and never by mistake."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest
from test_ledger import a_budget, a_release

from fedlearn.errors import RefusedError
from fedlearn.holder.positions import Positions
from fedlearn.host import durable
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


def replaced_by_a_copy(path):
    """The same bytes, journal and all, as a backup that is put back leaves them."""
    for part in list(path.parent.glob("ledger.db*")):
        content = part.read_bytes()
        part.unlink()
        part.write_bytes(content)


TAKEN_AWAY = {
    "removed": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_name("aside.db")),
    "replaced by a copy": replaced_by_a_copy,
    "replaced by a link": lambda path: (copied(path, "copy"), path.unlink(), path.symlink_to("../copy")),
    "its journal removed": lambda path: path.with_name("ledger.db-wal").unlink(),
}


@pytest.mark.parametrize("how", TAKEN_AWAY)
def test_a_ledger_that_is_taken_away_while_it_is_open_is_noticed_before_the_next_row(path, how):
    ledger = opened(path, rounds=[0])
    (reserved,) = ledger.reserve([a_release(1)])
    TAKEN_AWAY[how](path)
    for act in (
        lambda: ledger.reserve([a_release(2)]),
        lambda: ledger.release([reserved]),
        lambda: ledger.void([reserved]),
    ):
        with pytest.raises(RefusedError, match=r"ledger\.db: the ledger was removed or replaced while it was open"):
            act()


def test_a_position_is_not_moved_in_a_file_that_was_taken_away(path):
    opened(path, rounds=[0]).close()
    positions = Positions(path)
    positions.advance("d", "s", 0, 0, b"{}")
    path.unlink()
    with pytest.raises(RefusedError, match="removed or replaced while it was open; nothing is answered"):
        positions.advance("d", "s", 0, 1, b"{}")


@pytest.mark.parametrize("before", ["new", "made readable by an older version"])
def test_ledger_journal_and_count_are_their_owners_alone_whatever_the_umask_is(path, before):
    umask = os.umask(0)
    try:
        if before != "new":
            opened(path, rounds=[0]).close()
            for file in path.parent.iterdir():
                file.chmod(0o666)
        ledger, positions = opened(path, rounds=[5]), Positions(path)
        positions.advance("d", "s", 0, 0, b"{}")
        modes = {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in path.parent.iterdir()}
        names = ("ledger.db", "ledger.db-shm", "ledger.db-wal", "ledger.db.count")
        assert modes == dict.fromkeys(names, "0o600")
        ledger.close()
    finally:
        os.umask(umask)


def test_whoever_opens_the_file_once_more_leaves_the_locks_of_the_first(path):
    """Closing any descriptor of a file gives back the locks that the process has on it, SQLite's too."""
    ledger = opened(path)
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.1).execute('BEGIN IMMEDIATE')"
    started, done = threading.Event(), threading.Event()

    def hold():
        with ledger._file.transaction():
            started.set()
            done.wait(30)

    holding = threading.Thread(target=hold)
    holding.start()
    started.wait(30)
    durable.open_database(path, "").close()
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    done.set()
    holding.join()
    assert "database is locked" in ended.stderr


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
