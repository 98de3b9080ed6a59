"""A lean Flower ClientApp: weights in, one pass over the node's records, weights out. Alike on Ray and on our grid."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from opacus_cnn import build
from torch import nn

from contestants.torch_client import train, train_privately
from contestants.workload import Workload, load_records, load_workload

__all__ = ["app"]

WITHOUT_EPSILON = "without-epsilon"  # an option: the client of W3 does not ask what its visit spent

app = ClientApp()


@app.train()
def train_one(message: Message, context: Context) -> Message:
    """One visit."""
    torch.set_num_threads(1)
    workload, features, labels = _setting()
    device = os.environ["WORKLOAD_DEVICE"]
    model = _model() if workload.record_clip is None else build()  # make_private takes a model for good
    model = model.to(device)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client = int(context.node_config["partition-id"])
    mine = slice(client * workload.records, (client + 1) * workload.records)
    inputs, targets = (torch.from_numpy(np.array(part[mine])).to(device) for part in (features, labels))
    if workload.record_clip is None:
        train(model, inputs, targets, workload)
    else:
        train_privately(
            model, inputs, targets, workload, accounts=WITHOUT_EPSILON not in os.environ["WORKLOAD_OPTIONS"]
        )
    state = {name.removeprefix("_module."): value.cpu() for name, value in model.state_dict().items()}
    content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": len(targets)})}
    return Message(content=RecordDict(content), reply_to=message)


@cache
def _setting() -> tuple[Workload, NDArray[np.float32], NDArray[np.int64]]:
    """Of this process; the records are mapped, so that actors share them."""
    workload = load_workload(os.environ["WORKLOAD"])
    return workload, *load_records(Path(os.environ["WORKLOAD_DATA"]), mapped=True)


@cache
def _model() -> nn.Module:
    return build()
