"""The grid is a real Flower grid: Flower's own strategy and an unmodified ClientApp run on it."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedlearn.flower.in_process_grid import InProcessGrid, make_message
from fedlearn.flower.records import pack, unpack


def averaging_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        start = message.content["arrays"].to_numpy_ndarrays()[0]
        moved = ArrayRecord([start + float(context.node_config["partition-id"])])
        return Message(RecordDict({"arrays": moved, "metrics": MetricRecord({"num-examples": 1.0})}), reply_to=message)

    @app.query()
    def fail(message: Message, context: Context) -> Message:
        raise RuntimeError("patient 17")

    return app


def test_flowers_strategy_runs_an_unmodified_client_app_over_rounds():
    """Each round adds the mean of 0, 1, 2, 3 and 4."""
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=5)
    result = strategy.start(
        grid=InProcessGrid(averaging_app(), 5), initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=3
    )
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], [6.0, 6.0, 6.0], rtol=1e-12)


def test_a_node_keeps_what_its_app_left_there_and_no_other_sees_it():
    app = ClientApp()

    @app.train()
    def count(message: Message, context: Context) -> Message:
        before = context.state.get("times", MetricRecord({"n": 0}))
        context.state["times"] = MetricRecord({"n": before["n"] + 1})
        return Message(RecordDict({"metrics": context.state["times"]}), reply_to=message)

    grid = InProcessGrid(app, 3)
    asked = [grid.create_message(RecordDict(), "train", node, "") for node in (1, 1, 2, 1)]
    assert [reply.content["metrics"]["n"] for reply in grid.send_and_receive(asked)] == [1, 2, 1, 3]


def test_a_failing_app_becomes_an_error_reply_without_its_text():
    grid = InProcessGrid(averaging_app(), 1)
    (reply,) = grid.send_and_receive([grid.create_message(RecordDict(), "query", 1, "")])
    assert reply.has_error()
    assert "patient" not in str(reply.error.reason)


def test_each_reply_is_pulled_once_and_names_its_request():
    grid = InProcessGrid(averaging_app(), 2)
    content = RecordDict({"arrays": ArrayRecord([np.zeros(1)])})
    ids = grid.push_messages([grid.create_message(content, "train", node, "1") for node in (1, 2)])
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)] == ids
    assert grid.pull_messages(ids) == []


def test_no_messages_give_no_replies():
    assert InProcessGrid(averaging_app(), 3).send_and_receive([]) == []


def test_a_million_nodes_cost_nothing():
    assert len(InProcessGrid(averaging_app(), 10**6).get_node_ids()) == 10**6


def test_a_frame_survives_the_record_and_nothing_else_does():
    assert unpack(pack(b"frame")) == b"frame"
    message = make_message(pack(b"frame"), "query", 1, "")
    message.content["extra"] = MetricRecord({"loss": 1.0})
    with pytest.raises(Exception, match="not one frame"):
        unpack(message.content)
