"""Parties of an audit that protect less than they say: what audits must find."""

import os
from dataclasses import replace

import numpy as np

from fedlearn.audit.parties import Parties
from fedlearn.audit.setting import agree_on, changed
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.privacy.noise_sources import NOBODY
from fedlearn.round.agreement import Agreement


def agreed_otherwise(agreement: Agreement, entropy, **sections):
    """What parties of an audited release derive from a configuration with other values of some keys."""
    return agree_on(changed(agreement.config, sections), agreement.plan.dimension, entropy)


class NoNoise(Parties):
    """Whoever adds noise forgets it."""

    def __init__(self, agreement, entropy):
        super().__init__(replace(agreement, mechanism=replace(agreement.mechanism, noise=NOBODY)), entropy)


class NineTenths(Parties):
    """Whoever adds noise adds `factor` of it."""

    factor = 0.9

    def __init__(self, agreement, entropy):
        plan = agreement.plan
        short = replace(plan, noise_std=round(self.factor * plan.noise_std))
        super().__init__(replace(agreement, plan=short), entropy)


class OverRootTwo(NineTenths):
    factor = 1 / np.sqrt(2)


class LargerTarget(Parties):
    """They agreed on a larger epsilon than the audited run states."""

    def __init__(self, agreement, entropy):
        target = 2 * agreement.config.privacy.target_epsilon
        super().__init__(agreed_otherwise(agreement, entropy, privacy={"target_epsilon": target}), entropy)


class SizedForDropOutsAlone(Parties):
    """A share would do if the colluder did not know its own."""

    def __init__(self, agreement, entropy):
        more = {"min_survivors": agreement.plan.min_survivors + 1}
        short = agreed_otherwise(agreement, entropy, secure_aggregation=more).plan
        assert short.honest_survivors == agreement.plan.honest_survivors + 1
        super().__init__(replace(agreement, plan=short), entropy)


class NoRecordClip(Parties):
    """Sums gradients as long as they are."""

    def __init__(self, agreement, entropy):
        loose = agreed_otherwise(
            agreement,
            entropy,
            privacy={"max_grad_norm": 100 * agreement.config.privacy.max_grad_norm},
            secure_aggregation={"scale_bits": 12},  # of no importance to the work
        )
        super().__init__(replace(agreement, work=loose.work), entropy)


class NoClientClip(Parties):
    """Sends its update as long as it is."""

    def __init__(self, agreement, entropy):
        longer = replace(agreement.plan, clip_bound=3 * agreement.plan.clip_bound)
        super().__init__(replace(agreement, plan=longer), entropy)


class SameNoiseTwice(Parties):
    """Draws the noise of `times` releases from one and the same randomness."""

    times = 2

    def __init__(self, agreement, entropy):
        super().__init__(agreement, entropy)
        self.made = 0

    def contribute(self, clients):
        if self.made % self.times == 0:
            self.seed = os.urandom(40)
        self.made += 1
        self.entropy = stream_entropy(lambda _: self.seed)
        return super().contribute(clients)


class AlwaysTheSameNoise(SameNoiseTwice):
    times = 10**9


class OneRandomnessForAll(Parties):
    """All clients draw the same noise: who knows its own share knows everybody's."""

    def contribute(self, clients):
        seed, rows = os.urandom(40), []
        for client in clients:
            self.entropy = stream_entropy(lambda _: seed)
            rows.append(super().contribute([client])[0])
        return np.stack(rows)
