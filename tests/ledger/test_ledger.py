"""The privacy ledger: refused before anything is written, spent whatever happens, changed by nobody unseen."""

import math
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

from fedlearn.errors import BudgetExceededError, ConfigError, RefusedError
from fedlearn.ledger import Ledger, Reservation
from fedlearn.privacy.accounting import Event, epsilon_of
from fedlearn.privacy.guarantee import PrivacyUnit

DELTA = 1e-5


def an_event(z=8.0, probability=Fraction(1), *, count=1, eta="1.00e-20"):
    return Event(
        count=count,
        eta=Decimal(0) if probability == 1 else Decimal(eta),
        noise_multiplier_millionths=round(z * 10**6),
        sampling_probability=probability,
    )


def a_release(round_number, *, attempt=0, dataset_id="ward", session="s", event=None, max_releases=1000):
    return Reservation(
        dataset_id=dataset_id,
        session=session,
        round=round_number,
        attempt=attempt,
        event=(event or an_event()).to_bytes(),
        max_releases=max_releases,
    )


def a_budget(ledger, dataset_id="ward", *, max_epsilon=3.0, unit=PrivacyUnit.RECORD, order=None, max_delta=DELTA):
    ledger.open_dataset(dataset_id, privacy_unit=unit, max_epsilon=max_epsilon, max_delta=max_delta, order=order)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path):
    opened = Ledger(path)
    a_budget(opened)
    yield opened
    opened.close()


def rows(path):
    with sqlite3.connect(path) as database:
        return database.execute("SELECT * FROM entries WHERE kind != 'budget' ORDER BY seq").fetchall()


def tamper(path, statement, *values):
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER entries_no_update")
        database.execute("DROP TRIGGER entries_no_delete")
        database.execute(statement, values)
    database.close()


def test_r17_a_budget_of_three_and_a_half_rounds_refuses_the_fourth_and_nothing_is_written(path):
    event = an_event()
    three, four = (epsilon_of([(event, n)], delta=DELTA, epsilon_ceiling=3.0) for n in (3, 4))
    ledger = Ledger(path)
    a_budget(ledger, max_epsilon=three + 0.5 * (four - three))
    for number in range(3):
        ledger.release(ledger.reserve([a_release(number)]))
    before = rows(path)
    with pytest.raises(BudgetExceededError, match="no record was read"):
        ledger.reserve([a_release(3)])
    assert rows(path) == before
    assert len(ledger.events()) == 3


def test_r12_fifty_rounds_cost_what_dp_accounting_composes(path):
    ledger = Ledger(path)
    a_budget(ledger, max_epsilon=8.0)
    for number in range(50):
        ledger.release(ledger.reserve([a_release(number, event=an_event(12.0))]))
    theirs = RdpAccountant().compose(SelfComposedDpEvent(GaussianDpEvent(12.0), 50)).get_epsilon(DELTA)
    fixed, best = ledger.spent("ward")
    assert best == pytest.approx(theirs, rel=1e-12)
    assert fixed >= best


def test_r12_a_sampled_event_of_several_steps_counts_every_step(path):
    ledger = Ledger(path)
    a_budget(ledger, max_epsilon=8.0)
    for number in range(10):
        ledger.reserve([a_release(number, event=an_event(2.0, Fraction(1, 10), count=3))])
    sampled = PoissonSampledDpEvent(0.1, GaussianDpEvent(2.0))
    theirs = RdpAccountant().compose(SelfComposedDpEvent(sampled, 30)).get_epsilon(DELTA)
    assert ledger.spent("ward")[1] == pytest.approx(theirs, rel=1e-9)


def test_r01_five_rounds_in_five_processes_cost_five_rounds(path):
    script = (
        "import sys; from pathlib import Path; from fedlearn.ledger import *\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "ledger.release(ledger.reserve([Reservation(dataset_id='ward', session='s', round=int(sys.argv[2]), attempt=0, "
        "event=sys.argv[3].encode(), max_releases=9)]))"
    )
    ledger = Ledger(path)
    a_budget(ledger)
    for number in range(2):
        arguments = [str(path), str(number), an_event().to_bytes().decode()]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    for number in range(2, 5):
        again = Ledger(path)
        again.release(again.reserve([a_release(number)]))
        again.close()
    assert ledger.spent("ward")[1] == epsilon_of([(an_event(), 5)], delta=DELTA, epsilon_ceiling=3.0)


def test_r05_the_thirteenth_participation_of_twelve_is_refused(ledger):
    for number in range(12):
        ledger.release(ledger.reserve([a_release(number, event=an_event(40.0), max_releases=12)]))
    with pytest.raises(RefusedError, match="made 12 releases in session s; it may make 12"):
        ledger.reserve([a_release(12, event=an_event(40.0), max_releases=12)])
    ledger.reserve([a_release(0, session="another", event=an_event(40.0), max_releases=12)])


def test_a_release_too_many_is_refused_even_if_it_was_reserved_in_time(ledger):
    first, second = ledger.reserve([a_release(0, max_releases=1), a_release(1, max_releases=1)])
    ledger.release([first])
    with pytest.raises(RefusedError, match="it may make 1"):
        ledger.release([second])
    assert ledger.releases("ward", "s") == 1


def test_a_voided_reservation_costs_nothing_and_is_no_participation(ledger):
    kept, voided = ledger.reserve([a_release(0), a_release(1)])
    ledger.release([kept])
    ledger.void([voided])
    assert [booking.reservation for booking in ledger.events()] == [kept]
    assert ledger.spent("ward")[1] == epsilon_of([(an_event(), 1)], delta=DELTA, epsilon_ceiling=3.0)
    assert ledger.releases("ward", "s") == 1


def test_what_was_reserved_counts_although_it_was_never_released(path, ledger):
    ledger.reserve([a_release(0)])
    ledger.close()
    again = Ledger(path)
    (booking,) = again.events()
    assert not booking.released
    assert again.spent("ward")[0] > 0


def test_only_the_process_that_reserved_can_void_and_only_what_is_unreleased(path, ledger):
    open_one, released = ledger.reserve([a_release(0), a_release(1)])
    ledger.release([released])
    for reservation in (released, released + 1, 99):
        with pytest.raises(RefusedError, match="not an open one of this process"):
            ledger.void([reservation])
    other = Ledger(path)
    for call in (other.void, other.release):
        with pytest.raises(RefusedError, match="not an open one of this process"):
            call([open_one])
    ledger.void([open_one])
    with pytest.raises(RefusedError):
        ledger.release([open_one])
    assert len(ledger.events()) == 1


@pytest.mark.parametrize("pair", [(3, 1), (3, 0), (2, 7)])
def test_round_and_attempt_only_grow(ledger, pair):
    ledger.void(ledger.reserve([a_release(3, attempt=1)]))
    with pytest.raises(RefusedError, match="only grows"):
        ledger.reserve([a_release(pair[0], attempt=pair[1])])
    ledger.reserve([a_release(3, attempt=2), a_release(4)])
    with pytest.raises(RefusedError, match="only grows"):
        ledger.reserve([a_release(5), a_release(5)])
    ledger.reserve([a_release(0, session="another")])


def test_a_cohort_is_reserved_whole_or_not_at_all(path, ledger):
    a_budget(ledger, "poor", max_epsilon=0.1)
    with pytest.raises(BudgetExceededError, match='"poor"'):
        ledger.reserve([a_release(0), a_release(0, dataset_id="poor")])
    with pytest.raises(RefusedError, match='"unknown" has no budget'):
        ledger.reserve([a_release(0), a_release(0, dataset_id="unknown")])
    assert rows(path) == []
    assert ledger.reserve([a_release(0)]) == [3]  # after the two budgets


def test_entries_of_one_call_add_up(ledger):
    dear = an_event(2.4)
    two, three = (epsilon_of([(dear, n)], delta=DELTA, epsilon_ceiling=3.0) for n in (2, 3))
    assert two < 2.8 < 3.0 < three
    ledger.reserve([a_release(0, event=dear)])
    with pytest.raises(BudgetExceededError):
        ledger.reserve([a_release(1, event=dear), a_release(2, event=dear)])
    ledger.reserve([a_release(1, event=dear)])


def test_a_release_that_fails_leaves_the_others_unreleased(ledger):
    first, second = ledger.reserve([a_release(0), a_release(1)])
    with pytest.raises(RefusedError):
        ledger.release([first, second, 99])
    assert not any(booking.released for booking in ledger.events())
    ledger.release([first, second])


def test_an_event_that_is_not_understood_is_refused(path, ledger):
    entry = a_release(0)
    strange = Reservation(
        dataset_id="ward",
        session="s",
        round=0,
        attempt=0,
        max_releases=1,
        event=entry.event.replace(b"gaussian", b"magic"),
    )
    with pytest.raises(ConfigError):
        ledger.reserve([strange])
    assert rows(path) == []


def test_a_data_set_keeps_its_first_budget(ledger):
    a_budget(ledger)
    for other in ({"max_epsilon": 4.0}, {"unit": PrivacyUnit.CLIENT}, {"max_delta": 1e-6}, {"order": 2.0}):
        with pytest.raises(RefusedError, match="keeps its first"):
            a_budget(ledger, **other)


def test_the_order_of_a_budget_is_kept_across_processes(path, ledger):
    a_budget(ledger, "simulated", order=31.0)
    ledger.reserve([a_release(0, dataset_id="simulated")])
    again = Ledger(path)
    a_budget(again, "simulated", order=31.0)
    assert again.spent("simulated") == ledger.spent("simulated")


def test_r19_a_second_session_goes_on_spending(ledger):
    ledger.release(ledger.reserve([a_release(0)]))
    ledger.release(ledger.reserve([a_release(0, session="another")]))
    assert ledger.spent("ward")[1] == epsilon_of([(an_event(), 2)], delta=DELTA, epsilon_ceiling=3.0)
    assert [len(ledger.events(session=name)) for name in ("s", "another", "none")] == [1, 1, 0]


def a_session_of_two_data_sets(ledger):
    a_budget(ledger, "clinic")
    for number in range(3):
        ledger.release(ledger.reserve([a_release(number)]))
    ledger.release(ledger.reserve([a_release(0, dataset_id="clinic")]))
    ledger.void(ledger.reserve([a_release(1, dataset_id="clinic")]))


def test_the_state_of_a_session_tells_nothing_of_the_holders_other_runs(ledger, tmp_path):
    other = Ledger(tmp_path / "other.db")
    a_budget(other, max_epsilon=8.0)
    other.release(other.reserve([a_release(0, session="earlier")]))
    for each in (ledger, other):
        a_session_of_two_data_sets(each)
    other.reserve([a_release(1, session="later")])
    for dataset_id in (None, "ward", "clinic"):
        assert ledger.session("s", dataset_id) == other.session("s", dataset_id)


def test_the_state_of_a_session_counts_its_rows_and_the_releases_of_the_data_set_that_has_most(ledger):
    a_session_of_two_data_sets(ledger)
    states = [ledger.session("s", dataset_id) for dataset_id in (None, "ward", "clinic", "nobody's")]
    assert [(state.entries, state.releases) for state in states] == [(10, 3), (6, 3), (4, 1), (0, 0)]
    assert len({state.head for state in states}) == 4
    assert states[3].head == bytes(32) == ledger.session("of another").head


def test_every_row_of_a_session_moves_its_head_and_no_row_of_another_does(ledger):
    heads = [ledger.session("s").head]
    (first,) = ledger.reserve([a_release(0)])
    heads.append(ledger.session("s").head)
    ledger.release([first])
    heads.append(ledger.session("s").head)
    ledger.void(ledger.reserve([a_release(0, session="another")]))
    assert len(set(heads)) == 3
    assert ledger.session("s").head == heads[-1]


def test_r19_a_known_fingerprint_under_a_new_id_is_refused_until_the_holder_confirms(path, ledger):
    a_budget(ledger, "renamed")
    for number, seen in enumerate((b"1" * 32, b"2" * 32)):
        (reservation,) = ledger.reserve([a_release(number)])
        ledger.release([reservation], {reservation: seen})
    for number, seen in enumerate((b"1" * 32, b"2" * 32)):
        (reservation,) = ledger.reserve([a_release(number, dataset_id="renamed")])
        with pytest.raises(
            RefusedError, match=r'known as "ward" .* say so with fedlearn client ledger confirm renamed'
        ):
            ledger.release([reservation], {reservation: seen})
    assert [booking.released for booking in ledger.events("renamed")] == [False, False], "both stay spent"
    ledger.confirm("renamed")
    ledger.close()
    again = Ledger(path)
    (reservation,) = again.reserve([a_release(2, dataset_id="renamed")])
    again.release([reservation], {reservation: b"1" * 32})
    assert again.releases("renamed", "s") == 1


def test_r19_a_data_set_may_change_under_its_own_id_and_goes_on_spending(ledger):
    for number in range(3):
        (reservation,) = ledger.reserve([a_release(number)])
        ledger.release([reservation], {reservation: bytes([number // 2]) * 32})
    assert ledger.spent("ward")[1] == epsilon_of([(an_event(), 3)], delta=DELTA, epsilon_ceiling=3.0)


def test_a_fingerprint_is_evidence_in_the_chain_and_its_salt_is_not_a_row(path, ledger):
    salt = ledger.salt()
    assert salt == Ledger(path).salt() != Ledger(path.with_name("another.db")).salt()
    (reservation,) = ledger.reserve([a_release(0)])
    ledger.release([reservation], {reservation: b"7" * 32})
    told = rows(path)
    assert [row[2] for row in told] == ["reserve", "release", "fingerprint"]
    assert told[2][3] == reservation
    assert not any(salt in row or salt.hex().encode() in row for row in told)
    assert ledger.session("s").entries == 2, "evidence is the holder's, not the session's"


def test_only_a_data_set_with_a_budget_can_be_confirmed(ledger):
    with pytest.raises(RefusedError, match='"typo" has no budget'):
        ledger.confirm("typo")


def test_rows_cannot_be_updated_or_deleted(path, ledger):
    ledger.reserve([a_release(0)])
    ledger.salt()
    with sqlite3.connect(path) as database:
        for statement in ("UPDATE entries SET round = 9", "DELETE FROM entries", "DELETE FROM salts"):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET round = 9 WHERE seq = 2",
        "UPDATE entries SET dataset_id = 'other' WHERE seq = 2",
        "UPDATE entries SET session = 't' WHERE seq = 3",
        "UPDATE entries SET kind = 'void' WHERE seq = 4",
        "UPDATE entries SET kind = 'other' WHERE seq = 4",
        "UPDATE entries SET body = CAST(replace(body, '8.000000', '9.000000') AS BLOB) WHERE seq = 2",
        "UPDATE entries SET body = CAST(replace(body, '3.0', '9.0') AS BLOB) WHERE seq = 1",
        "UPDATE entries SET hash = prev_hash WHERE seq = 4",
        "DELETE FROM entries WHERE seq = 3",
        "DELETE FROM entries WHERE seq = 1",
    ],
)
def test_a_changed_or_removed_row_is_noticed(path, ledger, statement):
    ledger.release(ledger.reserve([a_release(0), a_release(1)]))
    assert ledger.verify_chain() == 5
    tamper(path, statement)
    with pytest.raises(RefusedError, match=r"ledger\.db: row [1-4] of the ledger is not what was written"):
        ledger.verify_chain()
    with pytest.raises(RefusedError, match="is not what was written"):
        Ledger(path)


def test_a_file_that_is_no_ledger_is_refused_in_one_sentence(path):
    path.write_text("this is not a database, it is a letter to my grandmother" * 20)
    with pytest.raises(RefusedError, match="cannot be opened"):
        Ledger(path)


def test_two_processes_share_one_budget(path, ledger):
    other = Ledger(path)
    dear = an_event(2.0)
    ledger.reserve([a_release(0, event=dear)])
    other.reserve([a_release(0, event=an_event(), session="t")])
    with pytest.raises(BudgetExceededError):
        other.reserve([a_release(1, event=dear, session="t"), a_release(2, event=dear, session="t")])
    assert ledger.spent("ward") == other.spent("ward")
    assert ledger.verify_chain() == other.verify_chain() == 3


def test_eta_of_every_booked_event_is_paid_from_the_budgets_delta(path):
    ledger = Ledger(path)
    a_budget(ledger, max_epsilon=2.0)
    event = an_event(30.0, Fraction(1, 10), eta="2.50e-7")
    paid = (1 + math.exp(2.0)) * 2.5e-7  # 2.1e-6: four of them leave 1.6e-6 of delta, five leave nothing
    assert 4 * paid < DELTA < 5 * paid
    for number in range(4):
        ledger.reserve([a_release(number, event=event)])
    with pytest.raises(BudgetExceededError):
        ledger.reserve([a_release(4, event=event)])


def test_a_cohort_of_250_takes_less_than_50_ms(ledger):
    names = [f"client {number}" for number in range(250)]
    ledger.open_dataset(names, privacy_unit=PrivacyUnit.CLIENT, max_epsilon=8.0, max_delta=1e-4, order=None)
    seconds = []
    for number in range(4):
        entries = [a_release(number, dataset_id=name) for name in names]
        start = time.process_time()
        ledger.release(ledger.reserve(entries))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1  # two transactions, CPU time


def a_cohort(round_number, *members, attempt=0, max_releases=2, session="s"):
    release = a_release(round_number, attempt=attempt, dataset_id="clients", max_releases=max_releases, session=session)
    return replace(release, members=members)


def test_a_cohorts_equal_releases_are_one_row_and_cost_what_they_cost_one_client(ledger, path):
    a_budget(ledger, "clients")
    a_budget(ledger, "alone")
    for round_number, members in enumerate([(0, 1, 2), (3, 4, 5), (0, 6, 7)], start=1):
        ledger.release(ledger.reserve([a_cohort(round_number, *members)]))
    for round_number in (1, 2):
        ledger.release(ledger.reserve([a_release(round_number, dataset_id="alone", session="t")]))
    assert ledger.spent("clients") == ledger.spent("alone")
    assert ledger.releases("clients", "s") == 2
    assert ledger.session("s").releases == 2
    assert ledger.session("s").entries == 6
    ledger.close()
    reopened = Ledger(path)
    assert reopened.spent("clients") == reopened.spent("alone")
    with pytest.raises(RefusedError, match="made 2 releases"):
        reopened.reserve([a_cohort(4, 0, 8)])
    reopened.release(reopened.reserve([a_cohort(4, 1, 8)]))
    reopened.close()


def test_a_cohort_of_which_one_would_pass_the_budget_is_refused_as_a_whole(ledger, path):
    a_budget(ledger, "clients", max_epsilon=1.0)
    fits = 0
    while True:
        try:
            ledger.release(ledger.reserve([a_cohort(fits + 1, fits + 1, max_releases=1000)]))
            ledger.release(ledger.reserve([a_cohort(fits + 1, 0, attempt=1, max_releases=1000)]))
        except BudgetExceededError:
            break
        fits += 1
    assert fits > 1
    before = len(rows(path))
    with pytest.raises(BudgetExceededError, match="no record was read"):
        ledger.reserve([a_cohort(fits + 2, 0, 500, max_releases=1000)])
    assert len(rows(path)) == before
    ledger.reserve([a_cohort(fits + 3, 500, 501, max_releases=1000)])


def test_a_voided_cohort_counts_for_nobody(ledger):
    a_budget(ledger, "clients")
    ledger.void(ledger.reserve([a_cohort(1, 0, 1)]))
    assert ledger.spent("clients")[0] == 0
    ledger.reserve([a_cohort(2, 0, 1)])
    assert ledger.spent("clients")[0] > 0


def test_an_account_is_one_clients_or_common_for_good(ledger):
    a_budget(ledger, "clients")
    ledger.reserve([a_cohort(1, 0)])
    with pytest.raises(RefusedError, match="common to many"):
        ledger.reserve([a_release(2, dataset_id="clients")])
    ledger.reserve([a_release(1)])
    with pytest.raises(RefusedError, match="one client's"):
        ledger.reserve([replace(a_release(2), members=(0, 1))])
