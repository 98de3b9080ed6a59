"""A sentence about epsilon names unit, relation, delta and observers, and never promises more than the run did."""

import math
from typing import Any

import pytest
from run_by_hand import certificate_content

from fedlearn.privacy.accounting import Event, epsilon_of
from fedlearn.privacy.guarantee import Guarantee
from fedlearn.report.certified import Certified
from fedlearn.report.figures import delta_text, epsilon_text, odds_text, three_digits_up
from fedlearn.report.replacement import epsilon_if_replaced
from fedlearn.report.statement import Statement, privacy_statement

EVENT = {"count": 1, "eta": "0", "mechanism": "gaussian", "noise_multiplier": "8.500000", "sampling_probability": "1"}
CLIENT = {"privacy_unit": "client", "neighboring_relation": "REPLACE_SPECIAL"}


def statement(fields: dict[str, Any], *, replaced: float | None = None, **changed: Any) -> Statement:
    certified = Certified.of(certificate_content({**fields, **changed}))
    return privacy_statement(certified, replaced=[replaced] * len(certified.guarantees))


def guarantee(fields: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {**fields["guarantees"][0], **changed}


@pytest.mark.parametrize("replaced", [None, 6.8])
@pytest.mark.parametrize(
    ("unit", "names"),
    [
        ({}, ("any single record of any client", "ADD_OR_REMOVE_ONE", "REPLACE_ONE")),
        (CLIENT, ("the whole data of any single client", "REPLACE_SPECIAL", "REPLACE_ONE")),
    ],
)
def test_each_sentence_with_an_epsilon_names_unit_relation_delta_and_observers(
    summary_fields: dict[str, Any], unit: dict[str, str], names: tuple[str, ...], replaced: float | None
) -> None:
    promise = statement(summary_fields, guarantees=[guarantee(summary_fields, **unit)], replaced=replaced).promises[0]
    sentences = [line for line in (promise.sentence, *promise.further) if "epsilon" in line]
    assert len(sentences) == 4
    for sentence in sentences:
        assert names[0] in sentence
        assert names[1] in sentence or names[2] in sentence
        assert "delta = " in sentence
        assert "against other participants and against those who see only" in sentence or "whoever sees" in sentence


def test_epsilon_is_never_rounded_down(summary_fields: dict[str, Any]) -> None:
    promise = statement(summary_fields, guarantees=[guarantee(summary_fields, epsilon=2.999901)]).promises[0]
    assert promise.epsilon == "3"
    assert "epsilon at most 3 at" in promise.sentence


def test_assumptions_are_repeated_word_by_word(summary_fields: dict[str, Any]) -> None:
    promise = statement(summary_fields).promises[0]
    assert [text for text, _ in promise.assumptions] == summary_fields["guarantees"][0]["assumptions"]
    assert {checked_by for _, checked_by in promise.assumptions} == {"nobody"}


def test_failed_masking_has_its_own_epsilon(summary_fields: dict[str, Any]) -> None:
    assert any(
        "If masking fails" in line and "9.0162" in line for line in statement(summary_fields).promises[0].further
    )


def test_failed_masking_that_leaves_nothing_is_said(summary_fields: dict[str, Any]) -> None:
    bare = guarantee(summary_fields, epsilon_if_masking_fails=math.inf)
    assert any(
        "what is left is nothing" in line for line in statement(summary_fields, guarantees=[bare]).promises[0].further
    )


def test_masking_off_takes_the_server_out(summary_fields: dict[str, Any]) -> None:
    assert "Against the server the guarantee does not hold" in statement(summary_fields).masking
    assert "never one client's vector" in statement(summary_fields, masking=True).masking


def test_run_that_is_not_private_promises_nothing(summary_fields: dict[str, Any]) -> None:
    bare = statement(summary_fields, private=False, guarantees=[], mode="none", noise="none")
    assert not bare.private
    assert bare.promises == ()
    assert "without noise" in bare.masking


def test_epsilon_above_ten_is_weak(summary_fields: dict[str, Any]) -> None:
    at, above = (guarantee(summary_fields, epsilon=value) for value in (10.0, 10.0001))
    assert [item.weak for item in statement(summary_fields, guarantees=[at, above]).promises] == [False, True]


def test_replacement_is_accounted_at_half_the_noise_multiplier(summary_fields: dict[str, Any]) -> None:
    halved = Event.from_dict({**EVENT, "noise_multiplier": "4.250000"})
    found = epsilon_if_replaced(Guarantee(**guarantee(summary_fields)), [Event.from_dict(EVENT)] * 31, 31)
    assert found == epsilon_of([(halved, 31)], delta=1e-5, epsilon_ceiling=3)
    assert found is not None
    assert found > 2 * 2.926


def test_replacement_is_unknown_where_events_do_not_give_the_guarantee(summary_fields: dict[str, Any]) -> None:
    event, sampled = (
        Event.from_dict(EVENT),
        Event.from_dict({**EVENT, "sampling_probability": "1/2", "eta": "1.00e-20"}),
    )
    promised = Guarantee(**guarantee(summary_fields))
    assert epsilon_if_replaced(promised, [event] * 31, 30) is None
    assert epsilon_if_replaced(promised, [sampled] * 31, 31) is None
    assert epsilon_if_replaced(promised, [event, sampled], 31) is None
    assert epsilon_if_replaced(promised, [], 31) is None


def test_without_it_group_privacy_bounds_a_replacement(summary_fields: dict[str, Any]) -> None:
    one = guarantee(summary_fields, epsilon=1.0)
    line = statement(summary_fields, guarantees=[one]).promises[0].further[0]
    assert "epsilon is at most 2 at delta = 3.72e-5" in line  # (1 + e) * 1e-5 = 3.718e-5, rounded up


def test_group_privacy_that_reaches_delta_one_promises_nothing(summary_fields: dict[str, Any]) -> None:
    far = guarantee(summary_fields, epsilon=60.0)
    assert "promises nothing" in statement(summary_fields, guarantees=[far]).promises[0].further[0]


def test_what_is_not_covered_follows_the_unit(summary_fields: dict[str, Any]) -> None:
    record = " ".join(statement(summary_fields).not_covered)
    client = " ".join(statement(summary_fields, guarantees=[guarantee(summary_fields, **CLIENT)]).not_covered)
    assert "several records" in record
    assert "took part" not in record
    assert "took part" in client
    assert "several records" not in client


def test_figures_round_up_what_bounds_a_loss() -> None:
    assert [epsilon_text(value) for value in (2.99991, 2.9999, 3.0, 0.00001)] == ["3", "2.9999", "3", "0.0001"]
    assert [odds_text(value) for value in (0.0, 3.0, 30.0)] == ["1", "20.1", "e^30"]
    assert three_digits_up(0.000210855) == "0.000211"
    assert [delta_text(value) for value in (1e-5, 1.5e-7, 0.001)] == ["1e-5", "1.5e-7", "0.001"]
