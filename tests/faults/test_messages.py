"""What Flower's runtime does to messages (the numbers are those of the fault list), and that rounds go on."""

import hashlib
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Error, Message

from fedlearn.errors import RunFailedError
from fedlearn.flower.records import pack
from tests.faults.bad_replies import BAD_REPLIES, in_the_place_of
from tests.faults.lossy_grid import Fate

STAGES = ("advertise", "share", "masked", "consistency", "unmask")


def only(stage: str, node: int, fate: Fate, *, copies: tuple[int, ...] = (0,)) -> Callable[[str, int, int], Fate]:
    """This fate for the first message of one stage to one node, or for these copies of it."""

    def fate_of(now: str, to: int, copy: int) -> Fate:
        return fate if (now, to) == (stage, node) and copy in copies else Fate()

    return fate_of


def lost(message: Message) -> None:
    del message


@pytest.mark.parametrize(
    "stage", ["masked", pytest.param("share", marks=pytest.mark.slow), pytest.param("unmask", marks=pytest.mark.slow)]
)
def test_f1_a_pull_that_never_returns_costs_one_client_and_no_time_beyond_the_deadline(lossy_run, stage):
    run = lossy_run(only(stage, 2, Fate(stuck=True), copies=tuple(range(100))), "run.spare_rounds=0")
    began = time.monotonic()
    (result,) = run.go()
    assert time.monotonic() - began < 30, "the pull is stuck for 60 s"
    assert result.survivors == (3 if STAGES.index(stage) <= 2 else 4)
    assert run.grid.pulled_together == 1, "each reply is looked for by itself"


def test_f2_f3_what_is_lost_is_sent_again_with_the_same_bytes_and_computed_once(lossy_run):
    """In every stage the request to node 3 gets lost, and the reply of node 2."""

    def fate_of(stage: str, node: int, copy: int) -> Fate:
        if copy or stage == "identify":
            return Fate()
        return {2: Fate(reply=lost), 3: Fate(delivered=False)}.get(node, Fate())

    run = lossy_run(fate_of)
    (result,) = run.go()
    assert result.survivors == 4
    assert result.attempt == 0
    assert run.releases() == [1, 1, 1, 1]
    for stage in STAGES:
        for node in (2, 3):
            copies = [sent.message for sent in run.grid.sent if (sent.stage, sent.node) == (stage, node)]
            assert len(copies) >= 2
            assert len({message.content["fedlearn"]["frame"] for message in copies}) == 1
            assert len({message.metadata.message_id for message in copies}) == len(copies)


def test_f2_a_copy_that_arrives_while_the_first_is_computed_gets_the_same_vector(lossy_run):
    """The reply to the first is late, so a copy goes out; both answers arrive and count once."""
    answers: list[bytes] = []

    def remember(message: Message) -> Message:
        answers.append(message.content["fedlearn"]["frame"])
        return message

    late = Fate(reply=remember, delay=0.5)
    run = lossy_run(only("masked", 1, late, copies=(0, 1, 2)))
    (result,) = run.go()
    assert result.survivors == 4
    assert len(answers) >= 2
    assert len({hashlib.sha256(answer).digest() for answer in answers}) == 1
    assert run.releases() == [1, 1, 1, 1]


def test_f10_after_every_kind_of_bad_reply_the_real_one_is_still_taken(lossy_run):
    """Node 4 answers each copy with another bad reply, and in the end as it should."""
    told = dict(BAD_REPLIES)

    def fate_of(stage: str, node: int, copy: int) -> Fate:
        if (stage, node) != ("masked", 4) or not told:
            return Fate()
        bad = told.pop(next(iter(told)))
        return Fate(reply=lambda message: Message(bad, reply_to=in_the_place_of(message)))

    run = lossy_run(fate_of, "secure_aggregation.stage_seconds=[2, 2, 30, 2, 2]")
    (result,) = run.go()
    assert not told
    assert result.survivors == 4
    assert run.releases() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "name",
    [
        "an array of 8 TB",
        pytest.param("NaN", marks=pytest.mark.slow),
        pytest.param("a refusal without a signature", marks=pytest.mark.slow),
    ],
)
def test_f10_who_has_nothing_but_bad_replies_is_out_and_the_round_goes_on(lossy_run, name):
    def instead(message: Message) -> Message:
        return Message(BAD_REPLIES[name], reply_to=in_the_place_of(message))

    run = lossy_run(only("masked", 4, Fate(reply=instead), copies=tuple(range(1000))), "run.spare_rounds=0")
    (result,) = run.go()
    assert result.survivors == 3
    assert result.loss is not None
    assert np.isfinite(result.loss)


def test_f9_an_error_of_flower_with_text_reaches_no_log(lossy_run, caplog):
    def failed(message: Message) -> Message:
        return Message(Error(2, "<class 'ValueError'>:<'patient-4711'>"), reply_to=in_the_place_of(message))

    run = lossy_run(only("masked", 2, Fate(reply=failed)))
    (result,) = run.go()
    assert result.survivors == 4, "it is asked again"
    assert "4711" not in caplog.text


def test_f11_a_forged_reply_is_dropped_and_the_real_one_is_still_taken(lossy_run):
    """Node 1, a member itself, answers in the place of node 2 with its own properly signed reply."""
    own: dict[str, Message] = {}
    ready = threading.Event()

    def keep(message: Message) -> Message:
        own["masked"] = message
        ready.set()
        return message

    def forge(message: Message) -> Message:
        assert ready.wait(5)
        return Message(own["masked"].content, reply_to=in_the_place_of(message))

    def fate_of(stage: str, node: int, copy: int) -> Fate:
        if stage == "masked" and node == 1 and copy == 0:
            return Fate(reply=keep)
        return Fate(reply=forge) if (stage, node, copy) == ("masked", 2, 0) else Fate()

    run = lossy_run(fate_of)
    (result,) = run.go()
    assert result.survivors == 4
    assert run.releases() == [1, 1, 1, 1]


def test_f11_a_node_is_the_member_whose_key_signed_not_the_one_it_claims(lossy_run):
    """Node 1 says that it is the member of node 2: nobody believes it, and node 2 is itself."""

    def claim(message: Message) -> Message:
        said = message.content["fedlearn"]["frame"]
        return Message(pack((1).to_bytes(16, "big") + said[16:]), reply_to=in_the_place_of(message))

    run = lossy_run(only("identify", 1, Fate(reply=claim), copies=tuple(range(100))))
    (result,) = run.go()
    assert result.survivors == 3


def test_a_member_that_comes_later_takes_part_in_the_next_round(lossy_run):
    run = lossy_run(lambda stage, node, copies: Fate(), rounds=4)
    run.grid.online.discard(4)

    def arrives(stage: str, node: int, copy: int) -> Fate:
        if stage == "unmask":
            run.grid.online.add(4)
        return Fate(delay=0.02)

    run.grid.fate_of = arrives
    results = run.go()
    assert results[0].survivors == 3
    assert results[-1].survivors == 4


@pytest.mark.lengthy
def test_f21_every_tenth_message_or_reply_lost_and_all_twenty_rounds_finish(lossy_run):
    """A fixed pattern, so that no run of the test is unlucky: 10 % of requests, then of replies, each stage in turn."""
    counter = iter(range(10**6))

    def fate_of(stage: str, node: int, copy: int) -> Fate:
        number = next(counter)
        if number % 20 == 7:
            return Fate(delivered=False)
        return Fate(reply=lost) if number % 20 == 17 else Fate()

    run = lossy_run(fate_of, "run.spare_rounds=0", rounds=20)
    results = run.go()
    assert [result.attempt for result in results] == [0] * 20
    assert {result.survivors for result in results} == {4}
    assert run.releases() == [20] * 4


@pytest.mark.slow
def test_a_run_whose_nodes_all_went_away_ends_with_a_sentence(lossy_run):
    run = lossy_run(
        lambda stage, node, copies: Fate(delivered=stage == "identify"),
        "secure_aggregation.stage_seconds=[1, 1, 1, 1, 1]",
    )
    with pytest.raises(RunFailedError, match="0 clients advertised"):
        run.go()
