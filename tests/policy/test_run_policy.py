"""What an agent asks: a coordinator can ask for less, never for more."""

import hashlib
import math
from functools import partial

import pytest
from holder_files import FOUR, client_id, key, small_roster, write_policy

from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.data.stored import fingerprint_of_name
from fedlearn.errors import RefusedError
from fedlearn.holder.context import Holder, HolderContext
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.masked_agent import MaskedAgent
from fedlearn.holder.positions import Positions
from fedlearn.ledger import Ledger
from fedlearn.model.layout import write_model
from fedlearn.model.vector import layout_of, read_parameters
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.policy.run_policy import Policy
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.round.agreement import plan_for
from fedlearn.round.context_fields import context_fields_of
from fedlearn.secagg.aggregator import Aggregator
from fedlearn.secagg.stages import Member
from fedlearn.secagg.transcript import Context, Position

SESSION = "ab" * 16


@pytest.fixture
def policy(load_digits):
    config = load_digits()
    return Policy.for_simulation(config, plan_for(config, dimension=650, population_size=10))


def check(policy, config, *, dimension=650, population_size=10):
    policy.check(config, plan_for(config, dimension=dimension, population_size=population_size))


def test_a_simulations_policy_accepts_its_own_scenario(policy, load_digits):
    check(policy, load_digits())


@pytest.mark.parametrize(
    "tighter",
    ["privacy.target_epsilon=1", "privacy.delta=1e-6", "secure_aggregation.min_survivors=9", "run.rounds=5"],
)
def test_a_tighter_run_is_accepted(policy, load_digits, tighter):
    check(policy, load_digits(tighter))


@pytest.mark.parametrize(
    ("looser", "reason"),
    [
        ("privacy.target_epsilon=3.5", r"epsilon is 3\.4.*at most 3"),
        ("privacy.delta=1e-4", "delta is 0.0001.*at most 1e-05"),
        ("privacy.mode=none", "mode is none; the policy accepts record-distributed"),
        ("privacy.mode=record-local", "mode is record-local"),
        ("model.name=mlp", "model is mlp; the policy accepts linear"),
        ("secure_aggregation.min_survivors=7", "min_survivors is 7; the policy accepts at least 8"),
        ("secure_aggregation.masking=false", "masking is false; the policy accepts true"),
    ],
)
def test_a_looser_run_is_refused_with_the_reason_for_the_holders_log(policy, load_digits, looser, reason):
    with pytest.raises(RefusedError, match=reason):
        check(policy, load_digits(looser, "privacy.planned_records=1000"))


def test_fewer_colluders_than_asked_are_refused(policy, load_digits):
    careful = policy.model_copy(update={"max_colluders_at_least": 2})
    with pytest.raises(RefusedError, match="max_colluders is 1; the policy accepts at least 2"):
        check(careful, load_digits())
    check(careful, load_digits("secure_aggregation.max_colluders=2"))


def test_a_larger_model_is_refused(policy, load_digits):
    with pytest.raises(RefusedError, match="651 entries"):
        check(policy, load_digits(), dimension=651)


def test_the_other_unit_is_refused_whatever_its_epsilon(policy, load_digits):
    named = policy.model_copy(update={"modes": ("client-distributed",)})
    with pytest.raises(RefusedError, match="privacy_unit is client; the policy accepts record"):
        check(named, load_digits("privacy.mode=client-distributed", "secure_aggregation.scale_bits=16"))


@pytest.mark.parametrize("limit", ["max_epsilon", "max_delta"])
@pytest.mark.parametrize("value", [math.nan, None])
def test_what_cannot_be_compared_is_refused(policy, load_digits, limit, value):
    with pytest.raises(RefusedError):
        check(policy.model_copy(update={limit: value}), load_digits())


def test_a_plan_without_guarantee_is_accepted_where_mode_none_is_named_and_nowhere_else(policy, load_digits):
    none = plan_for(load_digits("privacy.mode=none"), dimension=650, population_size=10)
    both = policy.model_copy(update={"modes": ("none", "record-distributed")})
    both.check(load_digits("privacy.mode=none"), none)
    with pytest.raises(RefusedError, match="guarantee is none: NOT PRIVATE"):
        policy.check(load_digits(), none)


@pytest.mark.parametrize(
    ("unconfirmed", "colluders", "accepted_members", "fine"),
    [(0, 1, 0, True), (1, 1, 0, True), (2, 1, 0, False), (2, 1, 1, False), (2, 1, 2, True), (3, 3, 0, True)],
)
def test_more_strangers_than_colluders_are_refused_unless_the_policy_says_how_many(
    policy, load_digits, unconfirmed, colluders, accepted_members, fine
):
    limits = policy.model_copy(update={"unconfirmed": unconfirmed, "unconfirmed_members": accepted_members})
    config = load_digits(f"secure_aggregation.max_colluders={colluders}")
    if fine:
        limits.check_asked(config)
    else:
        with pytest.raises(RefusedError, match=f"unconfirmed members is {unconfirmed}"):
            limits.check_asked(config)


def test_a_simulation_may_repeat_a_round_as_often_as_it_has_spare_ones(policy):
    policy.check_attempt(60_000)


# The agent of a holder whose policy is a file, under a coordinator played by hand.


class Asked:
    """Ada's agent, and what a coordinator can send it."""

    def __init__(self, folder, config, changes=None):
        self.config, self.roster, self.built = config, small_roster(), []
        data = load_simulated_data(config)
        context = HolderContext(
            policy=HolderPolicy.load(write_policy(folder, changes)).for_dataset("digits"),
            ledger=Ledger(folder / "ledger.db"),
            positions=Positions(folder / "ledger.db"),
            build=lambda asked: self.built.append(asked.model.name) or data.build_model(asked),
            population_size=4,
            device="cpu",
        )
        context.ledger.open_dataset(
            "digits", privacy_unit=PrivacyUnit.RECORD, max_epsilon=3.0, max_delta=1e-5, order=None
        )
        holder = Holder(client_id(0), "digits", lambda: data.train, fingerprint=partial(fingerprint_of_name, "digits"))
        self.agent = MaskedAgent(holder, Member(client_id(0), key(0), self.roster.keys), self.roster, context)
        model = data.build_model(config)
        self.layout = layout_of(model)
        self.model = write_model(read_parameters(model), self.layout)
        self.plan = data.plan

    def advertise(self, attempt=0, config=None):
        """Whether stage 0 is answered with keys."""
        config = config or self.config
        fields = context_fields_of(config, self.plan, self.layout, self.roster.sha256)
        position = Position(bytes.fromhex(SESSION), 1, attempt)
        context = Context(position, hashlib.sha256(self.model).digest(), fields)
        asked = [entry.client_id for entry in self.roster.members]
        aggregator = Aggregator(context, config.to_bytes(), model=self.model, roster=self.roster.keys, asked=asked)
        body = aggregator.requests()[client_id(0)].to_bytes()
        reply = self.agent.handle("advertise", Frame("advertise", SESSION, 1, attempt, body).to_bytes())
        return reply[: len(REFUSAL)] != REFUSAL


def test_an_agent_under_a_file_takes_part_in_what_the_file_accepts(tmp_path, load_digits):
    assert Asked(tmp_path, load_digits(*FOUR)).advertise()


@pytest.mark.parametrize("asked", ["secure_aggregation.masking=false", "privacy.mode=none"])
def test_no_masks_or_no_noise_asked_by_the_server_is_refused(tmp_path, load_digits, asked):
    agent = Asked(tmp_path, load_digits(*FOUR))
    assert not agent.advertise(config=load_digits(*FOUR, asked))
    assert agent.built == [], "nothing was built for a run that is refused anyway"


def test_a_model_that_the_policy_does_not_list_is_never_built(tmp_path, load_digits):
    agent = Asked(tmp_path, load_digits(*FOUR))
    assert not agent.advertise(config=load_digits(*FOUR, "model.name=coordinators.own:code"))
    assert agent.built == []


def test_one_start_is_trained_on_so_often_as_releases_per_model_says(tmp_path, load_digits):
    agent = Asked(tmp_path, load_digits(*FOUR))
    assert [agent.advertise(attempt) for attempt in range(4)] == [True, True, False, False]


def test_releases_per_model_holds_over_a_restart(tmp_path, load_digits):
    assert Asked(tmp_path, load_digits(*FOUR)).advertise(1)
    restarted = Asked(tmp_path, load_digits(*FOUR))
    assert [restarted.advertise(attempt) for attempt in (0, 1, 2)] == [False, False, False]
