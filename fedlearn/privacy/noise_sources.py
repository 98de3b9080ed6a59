"""Who adds the noise of a release, how it is drawn, and against whom it then holds: one class and one line a source."""

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedlearn.crypto.keystream import Entropy
from fedlearn.privacy.assumptions import COMPUTATIONAL, HONEST_SHARES, SYSTEM_ENTROPY, TRUSTED_SERVER, UNMASKED
from fedlearn.privacy.discrete_gaussian import LARGEST_NOISE_STD, discrete_gaussian
from fedlearn.privacy.quantization import IntVector

if TYPE_CHECKING:
    from fedlearn.privacy.plan import Plan

__all__ = ["CLIENTS", "NOBODY", "SERVER", "SHARES", "NoiseSource"]

_MODELS_ONLY = "those who see only the models"


class NoiseSource:
    """What is common to the sources: none adds noise where it does not say so. Instances have no state.

    How much is drawn is the plan's to say, whose `noise_std` is that of whoever draws, never an argument's. Override
    what your source draws, and always whom it holds against and what it assumes.
    """

    __slots__ = ()

    name: ClassVar[str]
    in_shares: ClassVar[bool] = False  # the noise of a sum is made of one share a client
    in_each_vector: ClassVar[bool] = False  # each client's vector is protected by itself
    at_server: ClassVar[bool] = False  # the server sees the exact sum
    drawn_by: ClassVar[str]  # in words
    sentence: ClassVar[str]  # who adds what

    def certain_shares(self, *, min_survivors: int, max_colluders: int) -> int:
        """How many shares of noise a sum is sure to hold that nobody who sees it knows; 1 where one party adds all."""
        del min_survivors, max_colluders
        return 1

    def share(self, plan: "Plan", shape: tuple[int, ...], entropy: Entropy) -> IntVector:
        """What each row adds to the vector that it sends, (n, d) int64; zeros where clients add none to it."""
        del plan, entropy
        return np.zeros(shape, dtype=np.int64)

    def of_sum(self, plan: "Plan", survivors: int, entropy: Entropy) -> IntVector:
        """What stands in a simulation for the shares of so many clients, (dimension,) int64; zeros without shares."""
        del survivors, entropy
        return np.zeros(plan.dimension, dtype=np.int64)

    def central(self, plan: "Plan", entropy: Entropy) -> IntVector:
        """What the server adds to the sum, (dimension,) int64; zeros where it adds none."""
        del entropy
        return np.zeros(plan.dimension, dtype=np.int64)

    def drawn_in_simulation(self, *, summed: bool) -> str:
        """Who adds the noise, or what stands for it, in a simulation (docs/specification/privacy.md 2.4).

        `summed`: masking is off and the engine sums vectors where they are made, with one draw for all shares.
        """
        del summed
        return self.name

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        """Whom the guarantee of one client's participations covers."""
        raise NotImplementedError

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        """What the guarantee rests on besides arithmetic."""
        raise NotImplementedError


class _Shares(NoiseSource):
    """Every client adds a share; those that neither drop out nor collude are enough."""

    __slots__ = ()
    name, in_shares, drawn_by = "shares", True, "each client, as its share"
    sentence = "all clients together add the noise"

    def certain_shares(self, *, min_survivors: int, max_colluders: int) -> int:
        """Without those that drop out, and without those that tell theirs."""
        return min_survivors - max_colluders

    def share(self, plan: "Plan", shape: tuple[int, ...], entropy: Entropy) -> IntVector:
        """One draw a row, row after row."""
        rows, dimension = shape
        noise = np.empty(shape, dtype=np.int64)
        for row in range(rows):
            discrete_gaussian(plan.noise_std, dimension, entropy, out=noise[row])
        return noise

    def of_sum(self, plan: "Plan", survivors: int, entropy: Entropy) -> IntVector:
        """One exact draw of standard deviation ceil(sqrt(survivors) * noise_std), at least that of the shares' sum.

        Several where one would be wider than the sampler can draw (docs/specification/privacy.md 2.4).
        """
        noise = np.zeros(plan.dimension, dtype=np.int64)
        most = LARGEST_NOISE_STD**2 // plan.noise_std**2
        for first in range(0, survivors, most):
            variance = min(most, survivors - first) * plan.noise_std**2
            noise += discrete_gaussian(math.isqrt(variance - 1) + 1, plan.dimension, entropy)
        return noise

    def drawn_in_simulation(self, *, summed: bool) -> str:
        return "aggregate" if summed else self.name

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        many = max_colluders != 1
        others = f"up to {max_colluders} other participants together" if many else "any one other participant"
        if not masking:  # the server sees every vector with one share of the noise: epsilon_if_masking_fails
            return (others, _MODELS_ONLY)
        return (f"the server and up to {max_colluders} roster member{'s' if many else ''}", others, _MODELS_ONLY)

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        return (HONEST_SHARES.text, (COMPUTATIONAL if masking else UNMASKED).text, SYSTEM_ENTROPY.text)


class _Clients(NoiseSource):
    """Each client adds the whole noise to each step of its own."""

    __slots__ = ()
    name, in_each_vector, drawn_by = "clients", True, "each client, in each step"
    sentence = "each client adds the full noise"

    def drawn_in_simulation(self, *, summed: bool) -> str:
        del summed
        return "box-muller"

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        del max_colluders, masking
        return ("the server", "all other participants together", _MODELS_ONLY)

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        del masking
        return (SYSTEM_ENTROPY.text,)


class _Server(NoiseSource):
    """The server adds the whole noise to the sum that it sees."""

    __slots__ = ()
    name, at_server, drawn_by = "server", True, "the server"
    sentence = "the server adds the noise"

    def central(self, plan: "Plan", entropy: Entropy) -> IntVector:
        """One draw."""
        return discrete_gaussian(plan.noise_std, plan.dimension, entropy)

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        del max_colluders, masking
        return ("other participants", _MODELS_ONLY)

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        del masking
        return (TRUSTED_SERVER.text, SYSTEM_ENTROPY.text)


class _Nobody(NoiseSource):
    """Nobody adds any. NOT PRIVATE."""

    __slots__ = ()
    name, drawn_by = "nobody", "nobody"
    sentence = "no noise"

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        del max_colluders, masking
        return ()

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        del masking
        return ()


SHARES, CLIENTS, SERVER, NOBODY = _Shares(), _Clients(), _Server(), _Nobody()
