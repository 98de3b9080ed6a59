"""What is done about a run, decided with a clock of our own: faults F12 and F14."""

import pytest

from fedlearn.deployment.runs import Facts, RunKeeper, Runs, Step
from fedlearn.errors import ConfigError


@pytest.fixture
def book(tmp_path):
    runs = Runs(tmp_path / "federation.db")
    yield runs
    runs.close()


def started(keeper, now=1000.0, **facts):
    """A keeper whose run was given to Flower at `now`."""
    assert keeper.decide(Facts(now=now, **facts)) is Step.SUBMIT
    keeper.submitted(now)
    return keeper


def test_a_run_is_submitted_and_left_alone_while_it_gives_signs_of_life():
    keeper = started(RunKeeper())
    for second in range(600):
        now = 1000.0 + second
        assert keeper.decide(Facts(now=now, alive=True, last_sign=now - 2, rounds=second // 100)) is Step.WAIT


def test_f14_a_run_that_never_starts_is_submitted_again_over_a_fresh_superlink_after_60_s():
    keeper = started(RunKeeper())
    assert keeper.decide(Facts(now=1060.0)) is Step.WAIT
    assert keeper.decide(Facts(now=1061.0)) is Step.RESTART
    keeper.submitted(1061.0)
    assert keeper.decide(Facts(now=1061.0 + 120)) is Step.WAIT
    assert keeper.decide(Facts(now=1061.0 + 121)) is Step.RESTART


def test_f14_a_sign_of_an_earlier_life_is_not_one():
    keeper = started(RunKeeper(), last_sign=999.0)
    assert keeper.decide(Facts(now=1061.0, last_sign=999.0)) is Step.RESTART


def test_f12_a_run_whose_process_is_gone_is_submitted_at_once_whatever_flower_says():
    keeper = started(RunKeeper())
    assert keeper.decide(Facts(now=1010.0, alive=True, last_sign=1009.0)) is Step.WAIT
    assert keeper.decide(Facts(now=1011.0, alive=False, last_sign=1009.0)) is Step.SUBMIT


def test_f12_a_fresh_superlink_knows_no_run():
    keeper = started(RunKeeper())
    keeper.interrupted()
    assert keeper.decide(Facts(now=1001.0)) is Step.SUBMIT


def test_f12_what_is_stuck_goes_before_another_begins():
    keeper = started(RunKeeper())
    stuck = {"alive": True, "last_sign": 7.0}
    assert keeper.decide(Facts(now=1005.0, **stuck)) is Step.WAIT
    assert keeper.decide(Facts(now=1035.0, **stuck)) is Step.WAIT
    assert keeper.decide(Facts(now=1036.0, **stuck)) is Step.RESTART
    keeper.interrupted()
    assert keeper.decide(Facts(now=1037.0, **stuck)) is Step.RESTART


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_is_set_in_a_run_changes_nothing(jump):
    """Signs of life are times of files: they jump with the clock."""
    keeper = started(RunKeeper(), last_sign=5000.0)
    for second in range(120):
        sign = 5001.0 + second + (jump if second >= 60 else 0)
        assert keeper.decide(Facts(now=1001.0 + second, alive=True, last_sign=sign)) is Step.WAIT
    assert keeper.decide(Facts(now=1122.0, alive=False, last_sign=sign)) is Step.SUBMIT


def test_f13_while_the_disk_is_full_nothing_is_started_and_it_is_not_given_up():
    keeper = started(RunKeeper())
    for second in range(3600):
        assert keeper.decide(Facts(now=1001.0 + second, last_sign=1.0, room=False)) is Step.WAIT
    assert keeper.decide(Facts(now=9000.0, last_sign=1.0)) is Step.SUBMIT


def test_a_run_that_never_comes_to_life_is_given_up_and_rounds_count_as_life():
    keeper = RunKeeper()
    now = 0.0

    def die(rounds):
        nonlocal now
        now += 10000.0
        step = keeper.decide(Facts(now=now, rounds=rounds))
        keeper.submitted(now)
        return step

    assert [die(0) for _ in range(6)] == [Step.SUBMIT, *[Step.RESTART] * 4, Step.GIVE_UP]
    assert [die(1) for _ in range(6)] == [*[Step.RESTART] * 5, Step.GIVE_UP]


def test_the_end_of_a_run():
    keeper = started(RunKeeper())
    assert keeper.decide(Facts(now=1001.0, trained=True, alive=True, last_sign=1001.0)) is Step.WAIT
    assert keeper.decide(Facts(now=1002.0, trained=True, done=True, alive=True)) is Step.WAIT
    assert keeper.decide(Facts(now=1002.0, trained=True, done=True, room=False)) is Step.WAIT
    assert keeper.decide(Facts(now=1002.0, trained=True, done=True)) is Step.CONCLUDE
    assert keeper.decide(Facts(now=1003.0, trained=True, done=True, concluded=True)) is Step.FINISHED
    assert keeper.decide(Facts(now=1003.0, failed=True)) is Step.FAILED


def test_whoever_was_not_asked_what_it_booked_is_asked_again_but_not_for_ever():
    keeper = started(RunKeeper())
    gone = {"trained": True, "last_sign": 1001.0, "rounds": 3}
    assert keeper.decide(Facts(now=1002.0, **gone)) is Step.SUBMIT
    steps = []
    for number in range(6):
        keeper.interrupted()
        steps.append(keeper.decide(Facts(now=2000.0 + number, **gone)))
    assert steps[-1] is Step.CONCLUDE


def test_runs_take_turns_in_the_order_in_which_they_were_booked(book, tmp_path):
    book.add("b")
    book.add("a")
    assert book.turn().id == "b"
    book.submitted("b", 2**64 - 1)
    assert (book.turn().state, book.turn().number) == ("running", 2**64 - 1)
    again = Runs(tmp_path / "federation.db")
    assert again.turn() == book.turn()
    again.close()
    book.end("b", "failed", "why")
    assert book.turn().id == "a"
    book.stop("a")
    assert book.turn().to_stop
    book.end("a", "stopped")
    assert book.turn() is None
    assert [(run.id, run.state, run.reason) for run in book.all()] == [("b", "failed", "why"), ("a", "stopped", "")]


def test_an_unknown_run_is_one_sentence(book):
    with pytest.raises(ConfigError, match="x: no such run; there is none yet"):
        book.find("x")
    book.add("y")
    with pytest.raises(ConfigError, match="the last ones are y"):
        book.find("x")


def test_what_is_no_book_is_one_sentence(tmp_path):
    (tmp_path / "federation.db").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="not a book of runs"):
        Runs(tmp_path / "federation.db")
