"""The parties of an audited release: clients that contribute as every client does, a server that finishes the round.

An audit plays the adversary; who is honest is played here. A test that shows an audit to fail plays other parties.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedlearn.crypto.keystream import Entropy
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import Lanes
from fedlearn.round.aggregation import finish_round, noised_sum
from fedlearn.round.agreement import Agreement
from fedlearn.round.contribution import Contributor, LocalWork, contribute

__all__ = ["MakeParties", "Parties"]


class Parties:
    """Honest clients and an honest server, on the code that runs them everywhere."""

    def __init__(self, agreement: Agreement, entropy: Entropy) -> None:
        """`entropy` is what noise is drawn from."""
        self.agreement, self.entropy = agreement, entropy
        self.weights = np.zeros(agreement.layout.dimension)
        # Steps with noise are taken anew in each release; other work has no chance in it here, and is done once.
        private_steps = agreement.mechanism.noise.in_each_vector
        self.work = agreement.work if private_steps else _once(agreement.work)

    def contribute(self, clients: Sequence[Contributor]) -> Lanes:
        """What each client sends in one release, (n, d)."""
        return contribute(
            self.weights,
            clients,
            work=self.work,
            mechanism=self.agreement.mechanism,
            plan=self.agreement.plan,
            entropy=self.entropy,
        )

    def finish(self, lanes: Sequence[Lanes], *, learning_rate: float = 1.0) -> Vector:
        """What the server makes of lanes (d,) that it sums: the update, (d,)."""
        mechanism, plan = self.agreement.mechanism, self.agreement.plan
        noised = noised_sum(lanes, mechanism=mechanism, plan=plan, entropy=self.entropy)
        return finish_round(noised, mechanism=mechanism, plan=plan, learning_rate=learning_rate)


MakeParties = Callable[[Agreement, Entropy], Parties]


def _once(work: LocalWork) -> LocalWork:
    """The same work, done once for each client."""
    done: dict[Contributor, Vector] = {}

    def remembered(weights: Vector, client: Contributor) -> Vector:
        if client not in done:
            done[client] = work(weights, client)
        return done[client]

    return remembered
