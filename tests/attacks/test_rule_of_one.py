"""Attack 3, and what surrounds it: each stage of an attempt is answered once, whatever else arrives when."""

import threading
from dataclasses import replace

import pytest
from lying_server import prepared
from small_federation import CONFIG, MODEL, Federation, client_id

from fedlearn.errors import RefusedError
from fedlearn.secagg.messages import REFUSAL, Stage, encode_advertise
from fedlearn.secagg.transcript import Position

VICTIM = client_id(1)


def honest_bodies(federation: Federation) -> dict[Stage, bytes]:
    """The requests of one attempt that was played to its end, as the victim got them."""
    aggregator, bodies = federation.aggregator(), {}
    for stage in Stage:
        bodies[stage] = aggregator.requests()[VICTIM].to_bytes()
        federation.exchange(aggregator)
        aggregator.close_stage()
    return bodies


def other_bodies(federation: Federation, bodies: dict[Stage, bytes]) -> dict[Stage, bytes]:
    """For each stage a request as good as the first, but another."""
    return {
        Stage.ADVERTISE: encode_advertise(federation.context(model=b"another"), CONFIG),
        Stage.SHARE: bodies[Stage.SHARE][:-176],
        Stage.MASK: bytes([0b11100000]) + bodies[Stage.MASK][1:-98] + MODEL,
        Stage.CONSISTENCY: bytes([0b11100000]),
        Stage.UNMASK: bodies[Stage.UNMASK][:-80],
    }


@pytest.mark.parametrize("stage", list(Stage))
def test_3_a_second_request_for_an_answered_stage_burns_the_attempt(stage):
    federation = Federation(4)
    bodies = honest_bodies(federation)
    other = other_bodies(federation, bodies)[stage]
    assert federation[1].reply(stage, federation.position, other) == REFUSAL
    assert "second, different request" in federation[1].reasons[-1]
    for again in Stage:
        assert federation[1].reply(again, federation.position, bodies[again]) == REFUSAL


@pytest.mark.parametrize("stage", list(Stage))
def test_3_it_burns_at_once_as_well_as_at_the_end(stage):
    federation = Federation(4)
    bodies = honest_bodies(federation)
    victim = Federation(4)[1]
    for earlier in Stage:
        if earlier <= stage:
            assert victim.reply(earlier, federation.position, bodies[earlier]) != REFUSAL
    assert victim.reply(stage, federation.position, other_bodies(federation, bodies)[stage]) == REFUSAL
    assert victim.reply(stage, federation.position, bodies[stage]) == REFUSAL


def test_the_same_request_gets_the_same_bytes_and_books_nothing():
    federation = Federation(4)
    bodies = honest_bodies(federation)
    first = [federation[1].sealed(stage, federation.position, bodies[stage]) for stage in Stage]
    again = [federation[1].sealed(stage, federation.position, bodies[stage]) for stage in Stage]
    assert first == again
    assert (federation[1].contributions, federation[1].releases) == (1, 1)


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage > Stage.ADVERTISE])
def test_a_stage_out_of_order_is_refused_and_burns_nothing(stage):
    federation = Federation(4)
    bodies = honest_bodies(federation)
    victim = Federation(4)[1]
    for earlier in list(Stage)[: stage - 1]:
        victim.reply(earlier, federation.position, bodies[earlier])
    assert victim.reply(stage, federation.position, bodies[stage]) == REFUSAL
    for rest in list(Stage)[stage - 1 :]:
        assert victim.reply(rest, federation.position, bodies[rest]) != REFUSAL


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage > Stage.ADVERTISE])
def test_refused_content_burns_the_attempt(stage):
    federation = Federation(4)
    bodies = honest_bodies(federation)
    victim = Federation(4)[1]
    for earlier in list(Stage)[:stage]:
        victim.reply(earlier, federation.position, bodies[earlier])
    assert victim.reply(stage, federation.position, b"") == REFUSAL
    assert victim.reply(stage, federation.position, bodies[stage]) == REFUSAL
    assert victim.releases == (stage > Stage.MASK)


def test_a_refused_stage_zero_leaves_nothing_behind():
    federation = Federation(4)
    refused = encode_advertise(federation.context(), b"another configuration")
    assert federation[1].reply(Stage.ADVERTISE, federation.position, refused) == REFUSAL
    assert federation[1].disk.last == (-1, -1)
    assert federation.play().survivors == tuple(federation.ids)


def test_a_message_of_an_older_attempt_burns_nothing():
    federation = Federation(4)
    old = federation.position
    bodies = honest_bodies(federation)
    federation.position = replace(old, attempt=1)
    aggregator = federation.aggregator()
    federation.advance(aggregator, Stage.MASK)
    for stage in Stage:
        assert federation[1].reply(stage, old, bodies[stage]) == REFUSAL
    federation.advance(aggregator, Stage.UNMASK)
    federation.exchange(aggregator)
    assert len(aggregator.unmask().survivors) == 4


def test_a_later_attempt_ends_the_live_one():
    federation = Federation(4)
    server, _ = prepared(federation)
    body, old = server.masked_body(VICTIM, server.members), federation.position
    federation.position = replace(old, attempt=1)
    federation.play()
    assert federation[1].reply(Stage.MASK, old, body) == REFUSAL


def test_a_round_is_never_repeated_even_by_a_new_process():
    federation = Federation(4)
    federation.play()
    federation[1].restart()
    body = encode_advertise(federation.context(), CONFIG)
    assert federation[1].reply(Stage.ADVERTISE, federation.position, body) == REFUSAL


def test_a_restarted_agent_has_dropped_out_and_the_sum_is_that_of_the_others():
    federation = Federation(4)
    aggregator = federation.aggregator()
    federation.advance(aggregator, Stage.CONSISTENCY)
    federation[3].restart()
    federation.exchange(aggregator)
    aggregator.close_stage()
    federation.exchange(aggregator)
    assert aggregator.incidents[0].reason == "refused"
    assert (aggregator.unmask().lanes == federation.sum_of([1, 2, 3, 4])).all()


@pytest.mark.parametrize("header", [{"round": 2}, {"attempt": 1}, {"session": bytes(16)}])
def test_header_and_context_must_agree(header):
    federation = Federation(4)
    body = encode_advertise(federation.context(), CONFIG)
    assert federation[1].reply(Stage.ADVERTISE, replace(federation.position, **header), body) == REFUSAL


def test_another_request_during_the_work_stops_it_before_the_release():
    federation = Federation(4)
    server, _ = prepared(federation, until=Stage.MASK)
    victim = federation[1]
    other = server.masked_body(VICTIM, server.members, b"another")
    victim.during_work = lambda: in_a_thread(lambda: victim.reply(Stage.MASK, server.position, other))
    assert server.mask(VICTIM, server.members) == REFUSAL
    assert (victim.contributions, victim.releases) == (1, 0)


def test_a_later_attempt_during_the_work_stops_it_before_the_release():
    federation = Federation(4)
    server, _ = prepared(federation, until=Stage.MASK)
    later = replace(server.position, attempt=1)
    body = encode_advertise(replace(federation.context(), position=later), CONFIG)
    federation[1].during_work = lambda: in_a_thread(lambda: federation[1].reply(Stage.ADVERTISE, later, body))
    assert server.mask(VICTIM, server.members) == REFUSAL
    assert federation[1].releases == 0


def test_stage_three_during_the_work_is_out_of_order_and_burns_nothing():
    federation = Federation(4)
    server, _ = prepared(federation, until=Stage.MASK)
    early = []
    federation[1].during_work = lambda: early.append(in_a_thread(lambda: server.sign(VICTIM, server.members)))
    assert server.mask(VICTIM, server.members) != REFUSAL
    assert early == [REFUSAL]


def test_the_same_request_during_the_work_waits_for_its_bytes():
    federation = Federation(4)
    server, _ = prepared(federation, until=Stage.MASK)
    begun, go_on, replies = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go_on.wait(10)

    federation[1].during_work = work
    threads = [threading.Thread(target=lambda: replies.append(server.mask(VICTIM, server.members))) for _ in range(2)]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert replies[0] == replies[1] != REFUSAL
    assert (federation[1].contributions, federation[1].releases) == (1, 1)


def test_a_budget_that_refuses_burns_the_attempt_and_says_nothing():
    federation = Federation(4)
    server, _ = prepared(federation, until=Stage.MASK)

    def refuse() -> None:
        raise RefusedError("patient 4711 has no budget left")

    federation[1].during_work = refuse
    assert server.mask(VICTIM, server.members) == REFUSAL
    federation[1].during_work = None
    assert server.mask(VICTIM, server.members) == REFUSAL
    assert federation[1].releases == 0


def test_work_that_breaks_off_burns_the_attempt():
    """The agent sends zeros and noise where training raises; whatever still escapes it is a bug, and is no release."""
    federation = Federation(4)
    server, _ = prepared(federation, until=Stage.MASK)

    def fail() -> None:
        raise ZeroDivisionError

    federation[1].during_work = fail
    with pytest.raises(ZeroDivisionError):
        server.mask(VICTIM, server.members)
    federation[1].during_work = None
    assert server.mask(VICTIM, server.members) == REFUSAL


def test_secrets_are_gone_after_the_round_and_after_a_burnt_one():
    federation = Federation(4)
    federation.play()
    assert federation[1].participant._attempt.state is None
    federation[1].participant.forget()
    assert federation[1].participant._attempt.replies == {}


def test_a_position_out_of_range_cannot_be_made():
    with pytest.raises(Exception, match="out of range"):
        Position(bytes(16), 0, 1 << 16)


def in_a_thread(work):
    """What `work` returns, called from another thread while this one waits."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(10)
    return results[0]
