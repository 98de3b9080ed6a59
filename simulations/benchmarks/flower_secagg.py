"""Flower's SecAgg+ by Flower's own functions, for `secagg.py` beside this file: the same vectors, the same run."""

import importlib
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlearn.privacy.request import threshold_of

T = TypeVar("T")
Floats = NDArray[np.float32]

REPEATS = 3


def measure_flower(vectors: list[Floats], dropped: int) -> dict[str, Any]:
    """The same attempt with Flower's functions; client 0 runs all of its stages. The sum is checked."""
    federation = FlowerFederation(vectors, dropped)
    client_seconds, bytes_up = federation.measure_client()
    masked = [federation.masked[number] for number in federation.active]
    adding, total = timed(lambda: federation.add(masked))
    repeats = REPEATS if len(vectors) <= 30 else 1
    started = time.process_time()
    unmasking = [timed(lambda: federation.unmask(total)) for _ in range(repeats)]
    unmask_cpu = (time.process_time() - started) / repeats
    federation.check(unmasking[-1][1])
    best = min(seconds for seconds, _ in unmasking)
    quantizing = min(cpu_timed(federation.quantize)[0] for _ in range(REPEATS))
    return {
        "client_seconds": client_seconds - quantizing,
        "quantization_seconds": quantizing,
        "server_seconds": best,
        "server_cpu_seconds": unmask_cpu,
        "server_total_seconds": adding + best,
        "bytes_up": bytes_up,
    }


class FlowerFederation:
    """Flower's clients and what its server does in its last stage, by Flower's own functions."""

    MODULUS, TARGET, CLIPPING = 1 << 32, 1 << 22, 8.0

    def __init__(self, vectors: list[Floats], dropped: int) -> None:
        from flwr.common.secure_aggregation.crypto.shamir import create_shares

        # The package has a function of the module's name.
        mod: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
        self.mod, self.vectors = mod, vectors
        self.clients, self.threshold = len(vectors), threshold_of(len(vectors))
        self.active = list(range(self.clients - dropped))
        self.dead = list(range(self.clients - dropped, self.clients))
        self.setup = {
            "sample_num": self.clients,
            "share_num": self.clients,
            "threshold": self.threshold,
            "clipping_range": self.CLIPPING,
            "target_range": self.TARGET,
            "mod_range": self.MODULUS,
            "max_weight": 1.0,
        }
        self.states = [mod.SecAggPlusState(nid=number) for number in range(self.clients)]
        self.keys = {}
        for state in self.states[1:]:
            keys = mod._setup(state, self.setup)
            self.keys[str(state.nid)] = [keys["pk1"], keys["pk2"]]
        self.seed = os.urandom(32)
        self.seed_shares = create_shares(self.seed, self.threshold, self.clients)
        self.key_shares = {
            number: create_shares(self.states[number].sk1, self.threshold, self.clients) for number in self.dead
        }
        self.masked: dict[int, list[bytes]] = {}

    def measure_client(self) -> tuple[float, int]:
        """CPU seconds of client 0's four stages, and bytes of its replies. The others' vectors are made besides."""
        from flwr.common import ndarrays_to_parameters
        from flwr.common.secure_aggregation.crypto.shamir import create_shares

        mod, first = self.mod, self.states[0]
        parameters = ndarrays_to_parameters([self.vectors[0]])
        spent = 0.0
        seconds, keys = cpu_timed(lambda: mod._setup(first, self.setup))
        self.keys = {"0": [keys["pk1"], keys["pk2"]]} | self.keys
        spent += seconds
        seconds, shared = cpu_timed(lambda: mod._share_keys(first, self.keys))
        spent += seconds
        boxes = {"srcs": list(range(1, self.clients)), "ctxts": [self.box(n) for n in range(1, self.clients)]}
        seconds, collected = cpu_timed(lambda: mod._collect_masked_vectors(first, boxes, 1, parameters))
        spent += seconds
        lists = {"active_nids": self.active, "dead_nids": self.dead}
        seconds, unmasked = cpu_timed(lambda: mod._unmask(first, lists))
        self.masked[0] = collected["masked_params"]
        self.first_shares = create_shares(first.rd_seed, self.threshold, self.clients)
        for number in self.active[1:]:
            self.masked[number] = self.others_vector(number)
        return spent + seconds, sum(payload_bytes(reply) for reply in (keys, shared, collected, unmasked))

    def quantize(self) -> None:
        """What its stage 2 does before masking."""
        scaled = self.mod.parameters_multiply([self.vectors[0]], 1.0)
        self.mod.factor_combine(self.TARGET, self.mod.quantize(scaled, self.CLIPPING, self.TARGET))

    def box(self, sender: int) -> bytes:
        """What another client seals for client 0."""
        from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt

        state = self.states[0]
        key_share = self.key_shares[sender][0] if sender in self.key_shares else self.seed_shares[0]
        plain = self.mod.share_keys_plaintext_concat(sender, 0, self.seed_shares[0], key_share)
        return bytes(encrypt(state.ss2_dict[sender], plain))

    def others_vector(self, number: int) -> list[bytes]:
        """The masked vector of another client, all of whose shares and boxes are left out."""
        from flwr.common import ndarrays_to_parameters

        state = self.states[number]
        state.rd_seed, state.rd_seed_share_dict, state.sk1_share_dict = self.seed, {}, {}
        state.public_keys_dict = {int(n): tuple(pair) for n, pair in self.keys.items()}
        peers = [peer for peer in range(self.clients) if peer != number]
        opened = _WithoutBoxes(self.mod, number)
        with opened:
            boxes = {"srcs": peers, "ctxts": [b""] * len(peers)}
            state.ss2_dict = dict.fromkeys(peers, b"")
            opened.senders = iter(peers)
            reply = self.mod._collect_masked_vectors(state, boxes, 1, ndarrays_to_parameters([self.vectors[number]]))
        return list(reply["masked_params"])

    def add(self, masked: list[list[bytes]]) -> list[NDArray[Any]]:
        """What its server does as vectors arrive."""
        from flwr.common import bytes_to_ndarray
        from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod

        total: list[NDArray[Any]] | None = None
        for reply in masked:
            arrays = [bytes_to_ndarray(data) for data in reply]
            total = arrays if total is None else parameters_addition(total, arrays)
        assert total is not None
        return parameters_mod(total, self.MODULUS)

    def unmask(self, total: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """From the last reply to the sum."""
        from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
        from flwr.common.secure_aggregation.crypto import shamir, symmetric_encryption
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

        mod, shapes = self.mod, [array.shape for array in total]
        for number in range(self.clients):
            held = self.held_shares(number)
            secret = shamir.combine_shares(held)
            if number in self.active:
                mask = pseudo_rand_gen(secret, self.MODULUS, shapes)
                total = arithmetic.parameters_subtraction(total, mask)
                continue
            for neighbor in (n for n in range(self.clients) if n != number):
                public = mod.bytes_to_public_key(self.keys[str(neighbor)][0])
                shared = symmetric_encryption.generate_shared_key(mod.bytes_to_private_key(secret), public)
                mask = pseudo_rand_gen(shared, self.MODULUS, shapes)
                undo = arithmetic.parameters_addition if number > neighbor else arithmetic.parameters_subtraction
                total = undo(total, mask)
        return arithmetic.parameters_mod(total, self.MODULUS)

    def held_shares(self, dealer: int) -> list[bytes]:
        """The shares of one secret that the survivors send."""
        shares = self.key_shares.get(dealer, self.first_shares if dealer == 0 else self.seed_shares)
        return [shares[holder] for holder in self.active]

    def check(self, total: list[NDArray[Any]]) -> None:
        """Flower's sum is right up to its own random rounding."""
        count = len(self.active)
        found = total[1] * (2 * self.CLIPPING / self.TARGET) - count * self.CLIPPING
        expected = np.sum([self.vectors[number] for number in self.active], axis=0)
        if int(total[0][0]) != count * self.TARGET or np.abs(found - expected).max() > 1e-4 * count:
            raise SystemExit("Flower's sum is wrong")


class _WithoutBoxes:
    """While a vector of an untimed client is made: its boxes need not be sealed and opened."""

    def __init__(self, mod: Any, receiver: int) -> None:
        self.mod, self.receiver = mod, receiver
        self.senders: Any = iter(())

    def __enter__(self) -> None:
        self.decrypt, self.separate = self.mod.decrypt, self.mod.share_keys_plaintext_separate
        self.mod.decrypt = lambda *_: b""
        self.mod.share_keys_plaintext_separate = lambda _: (next(self.senders), self.receiver, b"", b"")

    def __exit__(self, *_: object) -> None:
        self.mod.decrypt, self.mod.share_keys_plaintext_separate = self.decrypt, self.separate


def payload_bytes(value: Any) -> int:
    """Bytes of what a Flower reply carries, its names and framing left out; an integer counts 8."""
    if isinstance(value, dict):
        return sum(payload_bytes(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(payload_bytes(part) for part in value)
    return len(value) if isinstance(value, bytes) else 8


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Wall seconds of `work`, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def cpu_timed(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of `work`, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result
