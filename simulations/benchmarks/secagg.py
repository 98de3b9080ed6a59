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
import json
import os
import statistics
import sys
import time
from functools import partial
from typing import Any

import numpy as np
from flower_secagg import REPEATS, Floats, cpu_timed, measure_flower, timed

from fedlearn.crypto.keystream import SEED_BYTES, Keystream, stream_entropy
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import FedlearnError
from fedlearn.privacy.quantization import Lanes, to_lanes, truncate_within
from fedlearn.privacy.request import threshold_of
from fedlearn.secagg.aggregator import Aggregator
from fedlearn.secagg.masking import add_keystreams
from fedlearn.secagg.messages import Stage
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.stages import Member
from fedlearn.secagg.transcript import Context, ContextFields, Position

SCALE_BITS, CLIP = 16, 8
CONFIG, MODEL, SESSION = b"{}", b"", bytes(16)
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
    fields = terms_for(len(vectors), len(vectors[0]), survivors=len(vectors) - dropped)
    keys = {number.to_bytes(16, "big"): SigningKey(os.urandom(32)) for number in range(len(vectors))}
    roster = {client: key.public for client, key in keys.items()}
    position = Position(SESSION, 0, 0)
    participants = {client: participant_of(client, key, roster, fields) for client, key in keys.items()}
    context = Context(position, hashlib.sha256(MODEL).digest(), fields)
    aggregator = Aggregator(context, CONFIG, model=MODEL, roster=roster, asked=roster, threads=threads)
    silent = set(list(roster)[len(vectors) - dropped :])
    quantizing, lanes = zip(*(cpu_timed(partial(quantized, vector)) for vector in vectors), strict=True)
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


def terms_for(clients: int, dimension: int, survivors: int) -> ContextFields:
    """ContextFields of a cohort that bears these drop-outs, with the most colluders."""
    threshold = threshold_of(clients)
    return ContextFields(
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


def participant_of(client: bytes, key: SigningKey, roster: dict[bytes, bytes], fields: ContextFields) -> Participant:
    """A client whose agent agrees to everything."""

    def complain(stage: Stage, error: FedlearnError) -> None:
        raise SystemExit(f"stage {stage}: {error}")

    return Participant(
        Member(client, key, roster),
        SESSION,
        entropy=stream_entropy(os.urandom),
        agree=lambda _: fields,
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


if __name__ == "__main__":
    main()
