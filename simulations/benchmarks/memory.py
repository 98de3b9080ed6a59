"""What a large model costs in memory: one client from its update to its sealed reply, and the server's sum.

    python simulations/benchmarks/memory.py --dimension 10000000 --json

Figures are bytes an entry of the vector (8 are the vector itself in float64), as Python counts what it allocates. The
client's hold its weights, the update, noise, masks and the reply; the server's what stays beside the one reply in hand.
Exit 1 when the client passes 32 bytes an entry, or the server's memory grows with the number of replies.
"""

import argparse
import hashlib
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import TypeVar

import numpy as np
from secagg import CONFIG, MODEL, SESSION, participant_of, terms_for

from fedlearn.crypto.keystream import stream_entropy
from fedlearn.crypto.signatures import SigningKey
from fedlearn.data.dataset import Dataset
from fedlearn.privacy.calibration import Plan, plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.quantization import Lanes
from fedlearn.privacy.request import PrivacyRequest
from fedlearn.round.contribution import Contributor, contribute
from fedlearn.secagg.aggregator import Aggregator
from fedlearn.secagg.messages import Stage
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.transcript import Context, Position

T = TypeVar("T")

MOST_BYTES_AN_ENTRY = 32.0


def main() -> int:
    """Measure, print to stderr and, with --json, one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=10_000_000)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    tracemalloc.start()
    result = measure(given.clients, given.dimension)
    for name, value in result.items():
        print(f"{name:34} {value}", file=sys.stderr)
    if given.json:
        print(json.dumps(result))
    small = result["client_bytes_an_entry"] <= MOST_BYTES_AN_ENTRY
    return 0 if small and result["server_growth_a_reply"] < 0.1 else 1


def measure(clients: int, dimension: int) -> dict[str, float]:
    """Peaks of one attempt, in bytes an entry."""
    planned = plan_of(clients, dimension)
    terms = terms_for(clients, dimension, survivors=clients)
    keys = {number.to_bytes(16, "big"): SigningKey(os.urandom(32)) for number in range(clients)}
    roster = {client: key.public for client, key in keys.items()}
    position = Position(SESSION, 0, 0)
    participants = {client: participant_of(client, key, roster, terms) for client, key in keys.items()}
    context = Context(position, hashlib.sha256(MODEL).digest(), terms)
    aggregator = Aggregator(context, CONFIG, model=MODEL, roster=roster, asked=roster)
    for stage in (Stage.ADVERTISE, Stage.SHARE):
        for client, request in aggregator.requests().items():
            reply = participants[client].answer(stage, position, request.to_bytes())
            aggregator.receive(stage, client, reply)
        sum_bytes, _ = peak_of(aggregator.close_stage)
    client_peaks, server_peaks = [], []
    for client, request in aggregator.requests().items():
        make = partial(masked_reply, participants[client], position, request.to_bytes(), planned)
        peak, reply = peak_of(make)
        client_peaks.append(peak / dimension)
        peak, _ = peak_of(partial(aggregator.receive, Stage.MASK, client, reply))
        server_peaks.append(peak / dimension)
        del make, reply
    return {
        "dimension": dimension,
        "clients": clients,
        "client_bytes_an_entry": round(max(client_peaks), 2),
        "client_peak_mb": round(max(client_peaks) * dimension / 1e6, 1),
        "server_bytes_an_entry": round(sum_bytes / dimension, 2),
        "server_bytes_a_reply_in_hand": round(max(server_peaks), 2),
        "server_growth_a_reply": round((server_peaks[-1] - server_peaks[0]) / (clients - 1), 4),
    }


def peak_of(work: Callable[[], T]) -> tuple[int, T]:
    """The most bytes that were allocated at once during `work` beyond those before it, and its result."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    result = work()
    return tracemalloc.get_traced_memory()[1] - before, result


def masked_reply(participant: Participant, position: Position, body: bytes, planned: Plan) -> bytes:
    """Stage 2 of one client, from the weights it was sent on."""

    def vector_of(_: bytes | memoryview) -> Lanes:
        weights = np.zeros(planned.dimension)
        return contribute(
            weights,
            [Contributor(no_records, (0,))],
            work=an_update,
            mechanism=MECHANISMS[planned.mode],
            plan=planned,
            entropy=stream_entropy(os.urandom),
        )[0]

    return participant.answer_masked(position, body, vector_of, lambda: None)


def no_records() -> Dataset:
    """The update of this benchmark needs none."""
    raise AssertionError


def an_update(weights: Vector, _: Contributor) -> Vector:
    """An update as long as the clipping norm allows, and longer."""
    return np.full(len(weights), 0.1)


def plan_of(clients: int, dimension: int) -> Plan:
    """A private plan for a vector of this size."""
    request = PrivacyRequest(
        mode="client-distributed",
        target_epsilon=8.0,
        delta=1e-5,
        rounds=1,
        spare_rounds=0,
        max_grad_norm=None,
        clipping_norm=10.0,
        sampling_probability=Fraction(1),
        local_steps=1,
        planned_records=None,
        population_size=clients,
        planned_cohort=clients,
        min_survivors=clients,
        max_colluders=1,
        max_participations=1,
        scale_bits=16,
        dimension=dimension,
        cohorts="rotation",
        masking=True,
    )
    return plan(request)


if __name__ == "__main__":
    sys.exit(main())
