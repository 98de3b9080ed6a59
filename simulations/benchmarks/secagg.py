"""What secure aggregation costs here, beside Flower's SecAgg+ on the same vectors and beside the raw keystream.

    python simulations/benchmarks/secagg.py --clients 20 --dimension 1000000 --dropout 0.2 --json

`client`: CPU of stages 0 to 4 of one client (ours: the median), without what comes before masking on either side:
training, clipping, quantization, the model's hash; `client_ratio_quantized` has clipping and quantization in both.
`server`: wall from the last reply to the sum. `server_total`: with verifying, decoding and adding the vectors as they
arrive. `mask_rate_of_keystream`: bytes of masks added a CPU second, by the raw keystream's. On a machine that others
use compare CPU: `server_cpu_ratio`.

Flower runs its own functions on the complete graph with the same threshold. Only one of its clients runs every stage;
the others share one seed for their own masks, which spares minutes of making shares and changes no time that is taken.
"""

import argparse
import copy
import hashlib
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto.keystream import SEED_BYTES, Keystream, stream_entropy
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import FedlearnError
from fedlearn.privacy.quantization import Lanes, to_lanes, truncate_within
from fedlearn.secagg.aggregator import Aggregator
from fedlearn.secagg.masking import add_keystreams
from fedlearn.secagg.messages import Stage
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.stages import Member
from fedlearn.secagg.transcript import Context, Position, Terms, threshold_of

T = TypeVar("T")
Floats = NDArray[np.float32]

SCALE_BITS, CLIP = 16, 8
CONFIG, MODEL, SESSION = b"{}", b"", bytes(16)
REPEATS = 3
_ZEROS = bytes(1 << 17)


def main() -> None:
    """Measure both, print a table to stderr and, with --json, one object as the last line."""
    parser = argparse.ArgumentParser(description="secure aggregation beside Flower's SecAgg+ and the raw keystream")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the server")
    parser.add_argument("--without-flower", action="store_true", help="print fedlearn's own numbers only")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    vectors = [generator.normal(0, 0.001, given.dimension).astype(np.float32) for _ in range(given.clients)]
    dropped = int(given.dropout * given.clients)
    ours = measure_fedlearn(vectors, dropped, given.threads)
    rates = measure_masks(given.clients, given.dimension)
    peer = {} if given.without_flower else measure_flower(vectors, dropped)
    result = summary(given, ours, rates, peer)
    for name, value in result.items():
        print(f"{name:28} {value}", file=sys.stderr)
    if given.json:
        print(json.dumps(result))


def summary(
    given: argparse.Namespace, ours: dict[str, Any], rates: dict[str, float], peer: dict[str, Any]
) -> dict[str, Any]:
    """Times, rates and ratios under the names of the issue."""
    float32 = 4 * given.dimension
    result: dict[str, Any] = {"clients": given.clients, "dimension": given.dimension, "dropout": given.dropout}
    result |= {name: round(value, 6) if isinstance(value, float) else value for name, value in ours.items()}
    result |= {name: round(value, 3) for name, value in rates.items()}
    result["bytes_over_float32"] = round(ours["bytes_up"] / float32, 5)
    if peer:
        result |= {f"flower_{name}": round(value, 6) for name, value in peer.items() if name != "bytes_up"}
        result["flower_bytes_over_float32"] = round(peer["bytes_up"] / float32, 5)
        for name in ("client", "server", "server_cpu", "server_total"):
            result[f"{name}_ratio"] = round(peer[f"{name}_seconds"] / ours[f"{name}_seconds"], 2)
        quantized_too = [side["client_seconds"] + side["quantization_seconds"] for side in (peer, ours)]
        result["client_ratio_quantized"] = round(quantized_too[0] / quantized_too[1], 2)
    return result


def measure_fedlearn(vectors: list[Floats], dropped: int, threads: int) -> dict[str, Any]:
    """One attempt in which the last `dropped` clients are silent from stage 2's reply on. The sum is checked."""
    terms = terms_for(len(vectors), len(vectors[0]), survivors=len(vectors) - dropped)
    keys = {number.to_bytes(16, "big"): SigningKey(os.urandom(32)) for number in range(len(vectors))}
    roster = {client: key.public for client, key in keys.items()}
    position = Position(SESSION, 0, 0)
    participants = {client: participant_of(client, key, roster, terms) for client, key in keys.items()}
    context = Context(position, hashlib.sha256(MODEL).digest(), terms)
    aggregator = Aggregator(context, CONFIG, model=MODEL, roster=roster, asked=roster, threads=threads)
    silent = set(list(roster)[len(vectors) - dropped :])
    quantizing, lanes = zip(*(cpu_timed(lambda v=vector: quantized(v)) for vector in vectors), strict=True)
    client_cpu, bytes_up, server = dict.fromkeys(roster, 0.0), dict.fromkeys(roster, 0), 0.0
    for stage in Stage:
        for number, (client, request) in enumerate(aggregator.requests().items()):
            body, given = request.to_bytes(), lanes[number if stage <= Stage.MASK else 0]
            started = time.process_time()
            sealed = answer(participants[client], stage, position, body, given)
            client_cpu[client] += time.process_time() - started
            bytes_up[client] += len(sealed)
            if stage < Stage.MASK or client not in silent:
                started = time.perf_counter()
                aggregator.receive(stage, client, sealed)
                server += time.perf_counter() - started
        seconds, _ = timed(aggregator.close_stage)
        server += seconds
    unmask = [timed(copy.deepcopy(aggregator).unmask) for _ in range(REPEATS)]
    started = time.process_time()
    result = aggregator.unmask()
    unmask_cpu = time.process_time() - started
    expected = np.sum(lanes[: len(vectors) - dropped], axis=0, dtype=np.uint32)
    if not np.array_equal(result.lanes, expected):
        raise SystemExit("the sum is wrong")
    best = min(seconds for seconds, _ in unmask)
    return {
        "client_seconds": statistics.median(client_cpu[client] for client in roster if client not in silent),
        "quantization_seconds": statistics.median(quantizing),
        "server_seconds": best,
        "server_cpu_seconds": unmask_cpu,
        "server_total_seconds": server + best,
        "bytes_up": max(bytes_up.values()),
    }


def terms_for(clients: int, dimension: int, survivors: int) -> Terms:
    """Terms of a cohort that bears these drop-outs, with the most colluders."""
    threshold = threshold_of(clients)
    return Terms(
        config_hash=hashlib.sha256(CONFIG).digest(),
        roster_hash=bytes(32),
        layout_hash=bytes(32),
        privacy_mode=1,
        planned_cohort=clients,
        threshold=threshold,
        min_survivors=max(threshold, survivors),
        max_colluders=min(2 * threshold - clients - 1, max(threshold, survivors) - 2),
        dimension=dimension,
        scale_bits=SCALE_BITS,
        sensitivity=CLIP << SCALE_BITS,
        clip_bound=CLIP << SCALE_BITS,
        noise_std=64,
        sampling_numerator=1,
        sampling_denominator=1,
        stage_seconds=(60, 60, 600, 60, 60),
    )


def participant_of(client: bytes, key: SigningKey, roster: dict[bytes, bytes], terms: Terms) -> Participant:
    """A client whose agent agrees to everything."""

    def complain(stage: Stage, error: FedlearnError) -> None:
        raise SystemExit(f"stage {stage}: {error}")

    return Participant(
        Member(client, key, roster),
        SESSION,
        entropy=stream_entropy(os.urandom),
        agree=lambda _: terms,
        advance=lambda *_: None,
        on_refusal=complain,
    )


def answer(participant: Participant, stage: Stage, position: Position, body: bytes, lanes: Lanes) -> bytes:
    """A client's sealed reply; its contribution has no noise, as Flower has none."""
    if stage is Stage.MASK:
        return participant.answer_masked(position, body, lambda _: lanes, lambda: None)
    return participant.answer(stage, position, body)


def quantized(vector: Floats) -> Lanes:
    """The vector clipped to L2 norm 8, on the grid, as lanes."""
    return to_lanes(truncate_within(vector.astype(np.float64), scale=1 << SCALE_BITS, sensitivity=CLIP << SCALE_BITS))


def measure_masks(clients: int, dimension: int) -> dict[str, float]:
    """Bytes a CPU second of adding a client's masks, and of the raw keystream in the same chunks."""
    lanes = np.zeros(dimension + 3, dtype=np.uint32)
    seeds = [os.urandom(SEED_BYTES) for _ in range(clients)]
    best = {"mask": 0.0, "keystream": 0.0}
    stream, buffer = Keystream(seeds[0]), bytearray(1 << 17)
    for _ in range(max(5, 2_000_000_000 // (clients * lanes.nbytes) // 10)):
        started = time.process_time()
        add_keystreams(lanes, seeds[::2], seeds[1::2])
        best["mask"] = max(best["mask"], clients * lanes.nbytes / (time.process_time() - started))
        started = time.process_time()
        for _ in range(16):
            cipher, _ = stream.open_at(0)
            for _ in range(32):
                cipher.update_into(_ZEROS, buffer)
        best["keystream"] = max(best["keystream"], 16 * 32 * len(buffer) / (time.process_time() - started))
    return {
        "mask_gb_per_second": best["mask"] / 1e9,
        "keystream_gb_per_second": best["keystream"] / 1e9,
        "mask_rate_of_keystream": best["mask"] / best["keystream"],
    }


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


if __name__ == "__main__":
    main()
