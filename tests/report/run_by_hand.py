"""A run folder written by hand: the files a digits run leaves behind, with every field filled."""

import math
from pathlib import Path
from typing import Any

from fedlearn.canonical import canonical_json
from fedlearn.certificate.form import TYPE, decimal_up, delta_text
from fedlearn.report.page import draw_report
from fedlearn.report.run_folder import RunFolder

CONFIG = """\
[run]
rounds = 30
spare_rounds = 2
seed = 0

[data]
dataset = "digits"
population_size = 10
partition = "iid"

[model]
name = "linear"

[training]
learning_rate = 16.0
strategy = "FedAvgM"
local_steps = 1
batch_size = 32

[training.strategy_options]
server_momentum = 0.8

[privacy]
mode = "record-distributed"
target_epsilon = 3.0
delta = 1e-05
max_grad_norm = 0.3
clipping_norm = 10.0
sampling_probability = "1"
planned_records = 1400
max_participations = 32

[secure_aggregation]
masking = false
cohorts = "rotation"
planned_cohort = 10
min_survivors = 8
max_colluders = 1
scale_bits = 20
"""

GUARANTEE = {
    "epsilon": 2.926459,
    "delta": 1e-05,
    "privacy_unit": "record",
    "neighboring_relation": "ADD_OR_REMOVE_ONE",
    "holds_against": ["other participants", "those who see only the models"],
    "mechanism": "discrete Gaussian, shares of 10 clients",
    "accountant": "dp-accounting 0.6.0 RdpAccountant",
    "assumptions": [
        "At most 1 of the 10 roster members works with the server.",
        "No person's records lie at two clients.",
    ],
    "epsilon_estimate": 2.699139,
    "epsilon_if_masking_fails": 9.016188,
}

EVENT = {"count": 1, "eta": "0", "mechanism": "gaussian", "noise_multiplier": "8.500000", "sampling_probability": "1"}


def draw(folder: Path) -> Path:
    """The page of a folder whose certificate `verify` would refuse: its figures were chosen to be seen."""
    return draw_report(folder, RunFolder.read(folder))


def _confusion() -> list[list[int]]:
    matrix = [[34 if row == column else 0 for column in range(10)] for row in range(10)]
    for row, column, count in ((1, 8, 3), (8, 1, 2), (3, 5, 2), (5, 9, 1), (9, 3, 2), (9, 8, 1), (4, 6, 1)):
        matrix[row][column] = count
    return matrix


def _per_class() -> list[dict[str, Any]]:
    scores = [(0.99, 1.0), (0.94, 0.92), (1.0, 1.0), (0.94, 0.94), (1.0, 0.97), (0.94, 0.97), (0.97, 1.0), (1.0, 1.0)]
    scores += [(0.89, 0.94), (0.97, 0.92)]
    return [
        {"name": str(name), "precision": p, "recall": r, "f1": round(2 * p * r / (p + r), 4), "support": 34 + name % 4}
        for name, (p, r) in enumerate(scores)
    ]


def summary() -> dict[str, Any]:
    """A fresh `summary.json` as a mapping."""
    return {
        "format": "fedlearn/v1/summary",
        "scenario": "digits",
        "started": "2026-11-25T03:20:00+00:00",
        "ended": "2026-11-25T03:20:04+00:00",
        "seconds_per_round": 0.0518,
        "engine": "in-process",
        "device": "cpu",
        "mode": "record-distributed",
        "private": True,
        "masking": False,
        "noise": "shares",
        "accuracy": 0.9417,
        "loss": 0.2411,
        "classes": [str(number) for number in range(10)],
        "confusion": _confusion(),
        "per_class": _per_class(),
        "rounds": 30,
        "attempts": 31,
        "releases": 31,
        "run_dir": "runs/20261125-032000-digits",
        "guarantees": [dict(GUARANTEE)],
        "plan": {
            "noise_multiplier": 8.5,
            "noise_std": 1044213,
            "sensitivity": 314907,
            "dimension": 650,
            "bytes_per_round": 2600,
            "noise_to_signal": 0.0432,
            "releases": 32,
            "planned_cohort": 10,
            "min_survivors": 8,
            "max_colluders": 1,
            "honest_survivors": 7,
            "threshold": 7,
            "guarantee": dict(GUARANTEE),
        },
        "policy": {
            "dataset": {"digits": {"privacy_unit": "record", "max_epsilon": 3.0, "max_delta": 1e-05}},
            "limits": {"min_survivors": 8, "max_dimension": 650, "releases_per_model": 32},
        },
        "warnings": ["Masking is off: secure aggregation is not part of this run."],
        "unprotected": ["The moment at which a client replies.", "Which clients took part in a round."],
        "versions": {"fedlearn": "0.1.0", "torch": "2.13.0", "flwr": "1.42.0", "dp-accounting": "0.6.0"},
        "test_records": 360,
    }


def metrics() -> list[dict[str, Any]]:
    return [
        {
            "round": number,
            "attempt": 0,
            "asked": 10,
            "survivors": 10,
            "accuracy": round(0.9417 - 0.5 * math.exp(-number / 4) + 0.006 * math.sin(5 * (30 - number)), 4),
            "loss": round(0.2364 + 1.9 * math.exp(-number / 5), 4),
            "epsilon": round(2.926459 * math.sqrt(number / 30), 6),
            "seconds": 0.0518,
        }
        for number in range(1, 31)
    ]


def events() -> list[dict[str, Any]]:
    attempts = [(number, 0, False) for number in range(1, 31)]
    attempts[11:12] = [(12, 0, True), (12, 1, False)]
    return [
        {"round": r, "attempt": a, "asked": 10, "survivors": 7 if gone else 10, "aborted": gone, "event": EVENT}
        for r, a, gone in attempts
    ]


def certificate_content(fields: dict[str, Any]) -> dict[str, Any]:
    """The content of a certificate that says of privacy what `fields`, a summary with `guarantees`, says."""
    private = bool(fields["guarantees"])
    config = {
        "data": {"dataset": "digits"},
        "privacy": {"mode": fields["mode"], "max_grad_norm": "0.3", "clipping_norm": "10.0"},
        "secure_aggregation": {"min_survivors": 8, "max_colluders": 1},
    }
    secure = {
        "version": "fedlearn-secagg v1",
        "planned_cohort": 10,
        "threshold": 7,
        "min_survivors": 8,
        "max_colluders": 1,
        "roster_hash": "ab" * 32,
        "transcripts": ["cd" * 32] * 30,
    }
    return {
        "type": TYPE,
        "kind": "simulation" if fields["engine"] != "deployed" else "deployment",
        "run": {"session": "5e" * 16, "started": fields["started"], "ended": fields["ended"], "purpose": "digits"},
        "subject": {"model_hash": "01" * 32, "file_sha256": "02" * 32, "tensors": [{"name": "w", "shape": [650]}]},
        "config": canonical_json(config).decode(),
        "config_hash": "03" * 32,
        "population_size": 10,
        "noise": {"by": "shares", "drawn": fields["noise"], "std": 1044213, "sensitivity": 314907, "shares": 7},
        "guarantees": [_entry(guarantee, fields["releases"]) for guarantee in fields["guarantees"]],
        "events": [
            {
                "round": line["round"],
                "attempt": line["attempt"],
                "asked": line["asked"],
                "survived": line["survivors"],
                "aborted": line["aborted"],
                "event": EVENT if private else None,
            }
            for line in events()
        ],
        "ledger": {"head": "04" * 32, "entries": 620, "attestations": [_attestation(fields["releases"])]},
        "secure_aggregation": secure if fields["masking"] else None,
        "unprotected": list(fields["unprotected"]),
        "audit": [],
        "scores": None if fields["accuracy"] is None else {"accuracy": f"{fields['accuracy']:.6f}", "loss": None},
        "versions": fields["versions"],
    }


def _entry(guarantee: dict[str, Any], releases: int) -> dict[str, Any]:
    told = {name: guarantee[name] for name in ("privacy_unit", "neighboring_relation", "holds_against")}
    told |= {name: guarantee[name] for name in ("mechanism", "accountant")}
    bounds = ("epsilon", "epsilon_estimate", "epsilon_if_masking_fails")
    told |= {name: None if guarantee[name] is None else decimal_up(guarantee[name]) for name in bounds}
    assumptions = [{"id": "a", "text": text, "checked_by": "nobody"} for text in guarantee["assumptions"]]
    delta, epsilon = delta_text(guarantee["delta"]), decimal_up(guarantee["epsilon"])
    profile = [{"delta": delta, "epsilon": epsilon}]
    planned = {"epsilon_planned": epsilon, "delta": delta, "releases": releases, "mu": "0.655041"}
    return told | planned | {"assumptions": assumptions, "profile": profile}


def _attestation(releases: int) -> dict[str, Any]:
    return {
        "client_id": "ff" * 16,
        "dataset_tag": "05" * 16,
        "config_hash": "03" * 32,
        "ledger_head": "04" * 32,
        "entries": 620,
        "releases": releases,
        "unconfirmed": 0,
        "unconfirmed_members": 0,
        "same_user": False,
        "key": "06" * 32,
        "signature": "07" * 64,
    }
