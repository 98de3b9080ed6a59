"""The agent that a holder deploys: four of them under a coordinator, and one that must not start."""

import contextlib
import csv
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.attempts import Attempt, AttemptFailedError, Receive, Summed, masked_attempt
from fedlearn.data import load_dataset
from fedlearn.data.dataset import DataOptions
from fedlearn.errors import ConfigError, ProtocolError, RefusedError
from fedlearn.holder.deployed import MODELS_FOLDER, PAUSED_FILE, DeployedAgent, listen, main
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.positions import Positions
from fedlearn.holder.socket import ask, is_answering
from fedlearn.host.memory_limits import MODELS_KEPT
from fedlearn.model.layout import write_model
from fedlearn.model.vector import layout_of, read_parameters
from fedlearn.round.agreement import plan_for
from fedlearn.round.context_fields import context_fields_of
from fedlearn.round.source import Source, start_model
from fedlearn.run.trained import load_model, model_file
from fedlearn.secagg.messages import IDENTIFY, Envelope
from fedlearn.secagg.transcript import Position
from tests.holder_files import FOUR, client_id, entry, key, small_roster, write_policy

SESSION = "0123456789abcdef" * 2


class Federation:
    """Four deployed agents and a coordinator played by hand; it keeps what it sent and got. Dora has one user."""

    source = Source("digits", None)

    def __init__(self, folder: Path, changes: Mapping[str, str] | None = None, *overrides: str) -> None:
        self.roster = small_roster()
        paths = [write_policy(folder / str(member), dict(changes or {}), self.roster, member) for member in range(4)]
        self.agents = [DeployedAgent(path, same_user=path is paths[3]) for path in paths]
        self.config = RunConfig.load("digits", [*FOUR, *overrides])
        self.sent: dict[str, Mapping[int, bytes]] = {}
        self.got: dict[str, dict[int, bytes]] = {}

    def frame(self, stage: str, body: bytes, number: int = 1, attempt: int = 0, session: str = SESSION) -> bytes:
        return Frame(stage, session, number, attempt, body).to_bytes()

    def run(self, number: int = 1, attempt: int = 0, session: str = SESSION) -> Summed:
        model = start_model(self.config, self.source.blank(self.config), search=[])
        layout = layout_of(model)
        plan = plan_for(self.config, dimension=layout.dimension, population_size=4)

        def ask_all(stage: str, bodies: Mapping[int, bytes], receive: Receive) -> None:
            self.sent[stage] = {
                member: self.frame(stage, body, number, attempt, session) for member, body in bodies.items()
            }
            self.got[stage] = {
                member: self.agents[member].handle(0, stage, frame) for member, frame in self.sent[stage].items()
            }
            for member, reply in self.got[stage].items():
                receive(member, reply)

        planned = Attempt(
            cohort=range(4),
            config=self.config.to_bytes(),
            model=write_model(read_parameters(model), layout),
            dimension=layout.dimension,
            min_survivors=3,
            ask=ask_all,
            before_vectors=lambda: None,
        )
        position = Position(bytes.fromhex(session), number, attempt)
        fields = context_fields_of(self.config, plan, layout, self.roster.sha256)
        return masked_attempt(planned, fields=fields, roster=self.roster, position=position)

    def begin(self, *, until: str, number: int = 1, session: str = SESSION) -> None:
        """Play honestly and break off before `until` is sent; its frames stand in `sent`."""

        class Stop(Exception):
            pass

        original = [agent.handle for agent in self.agents]
        handle_of = dict(enumerate(original))

        def stopping(member: int) -> Callable[[int, str, bytes], bytes]:
            def handle(client: int, stage: str, request: bytes) -> bytes:
                if stage == until:
                    raise Stop
                return handle_of[member](client, stage, request)

            return handle

        wrapped, self.agents = self.agents, [_Front(stopping(member)) for member in range(4)]  # type: ignore[misc]
        try:
            self.run(number, session=session)
        except (Stop, AttemptFailedError):
            pass
        finally:
            self.agents = wrapped

    def close(self) -> None:
        for agent in self.agents:
            agent.close()


class _Front:
    def __init__(self, handle: Callable[[int, str, bytes], bytes]) -> None:
        self.handle = handle


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    made: list[Federation] = []

    def make(changes: Mapping[str, str] | None = None, *overrides: str) -> Federation:
        made.append(Federation(tmp_path, changes, *overrides))
        return made[-1]

    yield make
    for each in made:
        each.close()


def slow_records(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event, list[int]]:
    """The holder's file takes as long as the test wants: (reading began, go on, how often it was read)."""
    began, go_on, reads = threading.Event(), threading.Event(), []
    original = Source.loaded

    def loaded(self: Source, config: RunConfig) -> object:
        reads.append(1)
        began.set()
        assert go_on.wait(20)
        return original(self, config)

    monkeypatch.setattr(Source, "loaded", loaded)
    return began, go_on, reads


def test_four_deployed_agents_give_a_sum_and_book_one_release_each(federation):
    parties = federation()
    assert parties.run().survivors == 4
    assert [len(agent.ledger.events("digits")) for agent in parties.agents] == [1] * 4
    assert parties.run(2).survivors == 4


OWN_MODEL = """
import argparse
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, classes):
        super().__init__()
        width = int(torch.linspace(1, 9, 3)[-1].item())
        self.frozen, self.last = nn.Linear(64, width).requires_grad_(False), nn.Linear(width, classes)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return self.scale * self.last(torch.relu_(self.frozen(images.flatten(1))))

def build(*, input_shape, classes):
    argparse.ArgumentParser().parse_args()
    return Own(classes)
"""


def test_an_odd_model_of_ones_own_deploys_as_it_simulates(federation, tmp_path, monkeypatch, caplog):
    """Frozen, without dimensions, in place, sized by a tensor's value, and with a parser of arguments."""
    (tmp_path / "own_deployed.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    play = federation({"models": '["own_deployed:build"]'}, 'model.name="own_deployed:build"')
    assert play.run().survivors == 4
    assert "failed" not in caplog.text
    assert "absent" not in caplog.text


def test_f2_a_copy_that_comes_during_training_waits_and_gets_the_same_vector(federation, monkeypatch):
    parties = federation()
    parties.begin(until="masked")
    agent, frame = parties.agents[0], parties.sent["masked"][0]
    began, go_on, reads = slow_records(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(agent.handle, 0, "masked", frame)
        assert began.wait(20)
        copies = [pool.submit(agent.handle, 0, "masked", frame) for _ in range(3)]
        time.sleep(0.1)
        assert not any(copy.done() for copy in copies)
        go_on.set()
        replies = {first.result(20), *(copy.result(20) for copy in copies)}
    assert len(replies) == len(reads) == 1
    assert len(replies.pop()) == 4 * (650 + 3) + 64
    assert [booking.released for booking in agent.ledger.events("digits")] == [True]


def test_another_request_during_training_burns_the_attempt_and_nothing_is_released(federation, monkeypatch):
    parties = federation()
    parties.begin(until="masked")
    agent, frame = parties.agents[0], parties.sent["masked"][0]
    began, go_on, _ = slow_records(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(agent.handle, 0, "masked", frame)
        assert began.wait(20)
        assert agent.handle(0, "masked", frame[:-1] + b"?").startswith(REFUSAL)
        go_on.set()
        assert first.result(20).startswith(REFUSAL)
    assert agent.ledger.events("digits") == []


def test_f3_a_reply_is_kept_until_the_next_stage(federation):
    parties = federation()
    parties.run()
    for stage, frames in parties.sent.items():
        assert parties.agents[2].handle(0, stage, frames[2]) == parties.got[stage][2]
    assert len(parties.agents[2].ledger.events("digits")) == 1


def test_a_later_attempt_ends_the_live_one(federation):
    parties = federation()
    parties.begin(until="masked")
    late = parties.sent["masked"]
    assert parties.run(1, attempt=1).survivors == 4
    assert parties.agents[0].handle(0, "masked", late[0]).startswith(REFUSAL)


def test_a_restarted_agent_answers_no_attempt_that_it_may_have_answered(federation, tmp_path):
    parties = federation()
    parties.run(3)
    parties.agents[0].close()
    parties.agents[0] = DeployedAgent(tmp_path / "0" / "client.toml")
    with pytest.raises(AttemptFailedError):
        parties.run(3)
    assert parties.run(3, attempt=1).survivors == 4


def test_who_a_holder_is_is_signed_and_bound_to_the_question(federation):
    agent = federation().agents[1]
    frame = Frame("identify", SESSION, 0, 0, os.urandom(16))
    reply = agent.handle(0, "identify", frame.to_bytes())
    position = Position(bytes.fromhex(SESSION), 0, 0)

    def envelope(body: bytes) -> Envelope:
        return Envelope(position, IDENTIFY, client_id(1), hashlib.sha256(body).digest())

    assert envelope(frame.body).open(key(1).public, reply) == client_id(1)
    with pytest.raises(ProtocolError):
        envelope(os.urandom(16)).open(key(1).public, reply)


@pytest.mark.parametrize(
    "override",
    [
        "secure_aggregation.masking=false",
        "privacy.mode=none",
        "model.name=mlp",
        "privacy.target_epsilon=3.5",
        "data.dataset=breast-cancer",
    ],
)
def test_what_the_policy_does_not_name_is_refused_and_the_session_is_forgotten(federation, override):
    parties = federation({"models": '["linear"]'}, override)
    body = bytes(209) + len(parties.config.to_bytes()).to_bytes(4, "big") + parties.config.to_bytes()
    reply = parties.agents[0].handle(0, "advertise", parties.frame("advertise", body))
    assert reply.startswith(REFUSAL)
    assert len(reply) == 80
    parties.config = RunConfig.load("digits", FOUR)
    assert parties.run().survivors == 4, "a refused stage 0 leaves nothing behind"


def test_a_model_too_large_is_refused_before_memory_is_taken(federation):
    parties = federation({"models": '["linear", "mlp"]'}, "model.name=mlp", "model.options.hidden=[200000, 200000]")
    body = bytes(209) + len(parties.config.to_bytes()).to_bytes(4, "big") + parties.config.to_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert parties.agents[0].handle(0, "advertise", parties.frame("advertise", body)).startswith(REFUSAL)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB; the model has 160 GB


def test_f13_and_f16_a_model_without_room_on_this_machine_is_refused_in_the_holders_log(
    federation, monkeypatch, caplog
):
    caplog.set_level("INFO")
    parties = federation()
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**8))
        with pytest.raises(AttemptFailedError):
            parties.run()
        assert all(REFUSAL in reply for reply in parties.got["advertise"].values())
    assert "0.1 GB of disk are free; the run needs 0.1 GB: make room first" in caplog.text
    assert parties.run().survivors == 4


@pytest.mark.parametrize("stage", ["identify", "advertise", "share", "masked", "consistency", "unmask"])
def test_garbage_gets_the_constant_refusal(federation, stage):
    agent = federation().agents[0]
    for data in (b"", b"x", bytes(100), Frame(stage, SESSION, 1, 0, b"x").to_bytes()[:-1]):
        assert agent.handle(0, stage, data) == REFUSAL
    for body in (b"", b"x", bytes(300)):
        reply = agent.handle(0, stage, Frame(stage, SESSION, 1, 0, body).to_bytes())
        assert stage == "identify" or reply.startswith(REFUSAL)


def test_many_sessions_keep_a_few_models_and_no_position_is_lost(federation):
    parties = federation()
    for number in range(5):
        assert parties.run(1, session=f"{number:032x}").survivors == 4
    unmask = parties.sent["unmask"]
    assert not parties.agents[0].handle(0, "unmask", unmask[0]).startswith(REFUSAL)
    early = parties.frame("unmask", b"", session=f"{0:032x}")
    assert parties.agents[0].handle(0, "unmask", early).startswith(REFUSAL), "its attempt is gone"
    with pytest.raises(AttemptFailedError):
        parties.run(1, session=f"{0:032x}")
    assert parties.run(2, session=f"{0:032x}").survivors == 4


def test_while_it_is_paused_no_attempt_begins_and_one_that_began_goes_on(federation, tmp_path):
    parties = federation()
    parties.begin(until="masked")
    for member in range(4):
        (tmp_path / str(member) / PAUSED_FILE).touch()
    again = parties.agents[0].handle(0, "advertise", parties.sent["advertise"][0])
    assert again == parties.got["advertise"][0]
    assert not parties.agents[0].handle(0, "masked", parties.sent["masked"][0]).startswith(REFUSAL)
    with pytest.raises(AttemptFailedError):
        parties.run(2)
    for member in range(4):
        (tmp_path / str(member) / PAUSED_FILE).unlink()
    assert parties.run(2, attempt=1).survivors == 4


def test_the_final_model_is_kept_as_it_was_signed_for_and_no_other(federation, tmp_path):
    parties = federation()
    parties.run()
    like = Source("digits", None).blank(parties.config)
    layout = layout_of(start_model(parties.config, like, search=[]))
    weights = np.linspace(-1, 1, 650).astype(np.float32)
    assert parties.run(session=SESSION).survivors == 4
    agent, kept = parties.agents[0], tmp_path / "0" / MODELS_FOLDER / f"{SESSION}.safetensors"
    shown = write_model(weights.astype(np.float64), layout)
    assert not agent.handle(0, "attest", parties.frame("attest", shown, 2)).startswith(REFUSAL)
    for member, same_user in ((1, 0), (3, 1)):
        reply = parties.agents[member].handle(0, "attest", parties.frame("attest", shown, 2))
        assert int.from_bytes(reply[32:36], "big") == same_user
    coordinators = model_file(
        weights.astype(np.float64), layout, parties.config, input_shape=like.input_shape, classes=like.task.classes
    )
    assert kept.read_bytes() == coordinators
    assert len(load_model(kept).predict(like.features)) == 1
    tensors = load(kept.read_bytes())
    assert set(tensors) == set(layout.names)
    np.testing.assert_array_equal(np.concatenate([tensors[name].ravel() for name in layout.names]), weights)
    assert agent.handle(0, "attest", parties.frame("attest", shown[:-1] + b"!", 2)).startswith(REFUSAL)
    np.testing.assert_array_equal(load(kept.read_bytes())[layout.names[0]], tensors[layout.names[0]])


def restarted(parties: Federation, member: int = 0) -> DeployedAgent:
    path = parties.agents[member].policy.path
    parties.agents[member].close()
    parties.agents[member] = DeployedAgent(path)
    return parties.agents[member]


def forgotten(parties: Federation) -> None:
    """Four other sessions begin; nothing of them is booked."""
    for number in range(4):
        parties.begin(until="share", session=f"{number:032x}")


def start_weights(parties: Federation, value: float = 0.0) -> bytes:
    layout = layout_of(start_model(parties.config, Source("digits", None).blank(parties.config), search=[]))
    return write_model(np.full(650, value), layout)


@pytest.mark.parametrize("forget", [forgotten, restarted])
def test_the_configuration_of_a_session_is_pinned_for_good(federation, forget):
    parties = federation()
    assert parties.run().survivors == 4
    forget(parties)
    first = parties.config
    parties.config = RunConfig.load("digits", [*FOUR, "privacy.target_epsilon=0.3"])
    parties.begin(until="share", number=2)
    assert parties.got["advertise"][0].startswith(REFUSAL)
    parties.config = first
    parties.begin(until="share", number=2)
    assert not parties.got["advertise"][0].startswith(REFUSAL)


@pytest.mark.parametrize("forget", [forgotten, restarted])
def test_a_session_is_attested_once_and_over_for_good(federation, forget):
    parties = federation()
    assert parties.run().survivors == 4
    shown, other = start_weights(parties), start_weights(parties, 1.0)

    def attest(model: bytes) -> bytes:
        return parties.agents[0].handle(0, "attest", parties.frame("attest", model, 2))

    first = attest(shown)
    assert not first.startswith(REFUSAL)
    forget(parties)
    assert attest(other).startswith(REFUSAL)
    parties.begin(until="share", number=2)
    assert parties.got["advertise"][0].startswith(REFUSAL)
    assert attest(shown) == first
    assert len(parties.agents[0].ledger.events("digits")) == 1


@pytest.mark.parametrize("forget", [forgotten, restarted])
def test_a_holder_attests_though_it_restarted_after_the_last_round(federation, forget):
    parties = federation()
    parties.run()
    forget(parties)
    frame = parties.frame("attest", start_weights(parties), 2)
    assert not parties.agents[0].handle(0, "attest", frame).startswith(REFUSAL)
    assert parties.agents[0].handle(0, "attest", parties.frame("attest", b"x", 2, session="f" * 32)).startswith(REFUSAL)


def test_a_model_of_a_session_that_released_nothing_is_not_kept(federation, tmp_path):
    parties = federation()
    parties.run()
    shown, folder = start_weights(parties), tmp_path / "0" / MODELS_FOLDER
    assert not parties.agents[0].handle(0, "attest", parties.frame("attest", shown, 2)).startswith(REFUSAL)
    for number in range(MODELS_KEPT + 1):
        parties.begin(until="share", session=f"{number:032x}")
        reply = parties.agents[0].handle(0, "attest", parties.frame("attest", shown, 2, session=f"{number:032x}"))
        assert not reply.startswith(REFUSAL)
    assert [path.name for path in folder.iterdir()] == [f"{SESSION}.safetensors"]


def test_an_attempt_or_round_that_no_context_can_name_is_refused(federation):
    parties = federation()
    for number, attempt in ((1, 1 << 16), (1 << 32, 0), (1, 1 << 400), (-1, 0)):
        for stage in ("advertise", "identify", "attest", "masked"):
            assert parties.agents[0].handle(0, stage, parties.frame(stage, b"", number, attempt)) == REFUSAL
    frame = Frame.from_bytes(parties.frame("advertise", b"", (1 << 32) - 1, (1 << 16) - 1))
    assert (frame.round, frame.attempt) == ((1 << 32) - 1, (1 << 16) - 1)


@pytest.mark.parametrize("hidden", [[1] * 65, [1] * 400_000, [1 << 20, 1 << 20], [(1 << 20) + 1], [1 << 62]])
def test_many_or_wide_layers_are_refused_before_one_is_built(federation, tmp_path, hidden):
    parties = federation({"models": '["mlp"]'})

    def ask_with(widths):
        values = json.loads(parties.config.to_bytes())
        values["model"] = {"name": "mlp", "options": {"hidden": widths}}
        config = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
        context = b"\0\1" + bytes.fromhex(SESSION) + (1).to_bytes(4, "big") + bytes(148) + b"\x20" + bytes(38)
        body = context + len(config).to_bytes(4, "big") + config
        return parties.agents[0].handle(0, "advertise", parties.frame("advertise", body))

    ask_with([8])  # imports what any run needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    assert REFUSAL in ask_with(hidden)
    assert time.process_time() - began < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_sessions_that_release_nothing_keep_little_on_disk(federation, tmp_path):
    """Anybody who may ask can begin sessions; of the latest few alone the configuration stays, of all what pins it."""
    parties = federation()
    parties.run()
    positions = Positions(tmp_path / "0" / "ledger.db")
    for number in range(200):
        positions.advance("digits-1", f"{number:032x}", 1, 0, f"{number}".encode() * 1000)
    assert positions.configuration(SESSION) == parties.config.to_bytes()  # it released
    assert positions.configuration(f"{199:032x}") == b"199" * 1000
    assert sum(positions.configuration(f"{number:032x}") is not None for number in range(200)) <= 32
    with pytest.raises(ProtocolError, match="changed"):
        positions.advance("digits-1", f"{0:032x}", 2, 0, b"another")
    positions.advance("digits-1", f"{0:032x}", 2, 0, b"0" * 1000)
    assert positions.configuration(f"{0:032x}") == b"0" * 1000
    positions.close()


def test_a_reply_with_a_vector_is_held_as_long_as_the_policy_says(federation):
    parties = federation({"reply_after_seconds": "0.3"})
    parties.begin(until="masked")
    began = time.monotonic()
    parties.agents[0].handle(0, "masked", parties.sent["masked"][0])
    assert time.monotonic() - began >= 0.3


def test_the_records_of_a_table_are_those_of_the_holders_file(tmp_path):
    config = RunConfig.load("digits", [])
    loaded = load_dataset(DataOptions(dataset="digits")).train
    pixels = ((loaded.features[:20, 0] + 0.3) * 16).round().astype(int).reshape(20, 64)
    with (tmp_path / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"p{i}" for i in range(64)), "digit"])
        writer.writerows([*row, label] for row, label in zip(pixels, loaded.labels[:20], strict=True))
    text = config.to_toml()
    columns = "\n".join(f"[data.columns.p{i}]\nlow = 0.0\nhigh = 16.0\n" for i in range(64))
    classes = [[str(digit)] for digit in range(10)]
    head = f'dataset = "csv"\nlabel = "digit"\nclasses = {classes}\npath = "/etc/passwd"'.replace("'", '"')
    path = tmp_path / "run.toml"
    path.write_text(text.replace('dataset = "digits"', head) + columns)
    source = Source("csv", tmp_path / "own.csv")
    table = RunConfig.load(path)
    assert source.blank(table).input_shape == (64,)
    records = source.records(RunConfig.from_bytes(table.to_bytes()))
    assert len(records) == 20
    np.testing.assert_array_equal(records.labels, loaded.labels[:20])
    (tmp_path / "own.csv").unlink()
    assert source.blank(table).task.classes == tuple("0123456789"), "the file is not opened for it"


class TestItDoesNotStart:
    def test_without_a_policy(self, tmp_path):
        with pytest.raises(ConfigError, match="no such file"):
            DeployedAgent(tmp_path / "client.toml")

    def test_with_an_unknown_key_or_without_a_limit(self, tmp_path):
        path = write_policy(tmp_path)
        text = path.read_text()
        path.write_text(text + "\nnoise = 0\n")
        with pytest.raises(ConfigError, match="noise"):
            DeployedAgent(path)
        path.write_text(text.replace("max_dimension = 650\n", ""))
        with pytest.raises(ConfigError, match="max_dimension is missing"):
            DeployedAgent(path)

    def test_with_another_roster_than_the_accepted_one(self, tmp_path):
        path = write_policy(tmp_path)
        (tmp_path / "roster.toml").write_bytes(small_roster(entry(0), entry(1), entry(2)).content)
        with pytest.raises(RefusedError, match="roster accept"):
            DeployedAgent(path)

    def test_with_a_roster_that_has_another_key_for_this_holder(self, tmp_path):
        roster = small_roster(entry(0, signing_key=key(7)), *(entry(member) for member in (1, 2, 3)))
        with pytest.raises(RefusedError, match="somebody else would be believed to be you"):
            DeployedAgent(write_policy(tmp_path, roster=roster))

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda file: file.unlink(), "the key cannot be read"),
            (lambda file: file.write_bytes(b"short"), "expected the 32"),
            (lambda file: file.chmod(0o640), "lets others read the key"),
        ],
    )
    def test_with_a_key_that_is_missing_broken_or_open(self, tmp_path, spoil, told):
        path = write_policy(tmp_path)
        spoil(tmp_path / "identity.key")
        with pytest.raises(ConfigError, match=told):
            DeployedAgent(path)

    def test_with_another_budget_than_the_ledger_has(self, tmp_path):
        DeployedAgent(write_policy(tmp_path)).close()
        with pytest.raises(RefusedError, match="budget"):
            DeployedAgent(write_policy(tmp_path, {"max_epsilon": "2.0"}))


class TestItsSocket:
    @pytest.fixture
    def short(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:
            yield Path(place)

    def test_refuses_its_own_user_unless_it_was_told_otherwise(self, short):
        agent = DeployedAgent(write_policy(short))
        frame = Frame("identify", SESSION, 0, 0).to_bytes()
        with listen(agent, allow_same_user=False):
            assert ask(short / "agent.sock", 0, frame, seconds=10) == REFUSAL
        with listen(agent, allow_same_user=True):
            assert ask(short / "agent.sock", 0, frame, seconds=10).startswith(client_id(0))
        agent.close()

    def test_is_open_to_a_group_alone(self, short):
        agent = DeployedAgent(write_policy(short))
        with listen(agent, allow_same_user=False, group=os.getgid()):
            assert stat.S_IMODE((short / "agent.sock").stat().st_mode) == 0o660
        with listen(agent, allow_same_user=True):
            assert stat.S_IMODE((short / "agent.sock").stat().st_mode) == 0o600
        agent.close()

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's place")
    def test_serves_another_user(self, short):
        agent = DeployedAgent(write_policy(short))
        short.chmod(0o755)
        script = (
            "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(bytes.fromhex(sys.argv[2])); s.shutdown(1); print(s.recv(200).hex())"
        )
        frame = bytes(4) + Frame("identify", SESSION, 0, 0).to_bytes()
        command = [sys.executable, "-c", script, str(short / "agent.sock"), frame.hex()]
        with listen(agent, allow_same_user=False, group=65534):
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        assert bytes.fromhex(told.stdout)[8:24] == client_id(0)
        agent.close()

    def test_a_frame_longer_than_the_largest_model_is_refused_before_it_is_read(self, short):
        agent = DeployedAgent(write_policy(short))
        with listen(agent, allow_same_user=True):
            frame = Frame("masked", SESSION, 1, 0, bytes(4 << 20)).to_bytes()
            with contextlib.suppress(ProtocolError):  # it closed while this peer still wrote
                assert ask(short / "agent.sock", 0, frame, seconds=10) == REFUSAL
            frame = Frame("identify", SESSION, 0, 0).to_bytes()
            assert ask(short / "agent.sock", 0, frame, seconds=10).startswith(client_id(0))
        agent.close()

    def test_where_an_agent_listens_no_second_one_does(self, short):
        agent = DeployedAgent(write_policy(short))
        with listen(agent, allow_same_user=True), pytest.raises(ConfigError, match="listening there already"):
            listen(agent, allow_same_user=True)
        with listen(agent, allow_same_user=True):
            assert is_answering(short / "agent.sock"), "what a killed one left behind is no obstacle"
        agent.close()

    def test_a_path_that_is_too_long_is_one_sentence(self, short):
        policy = write_policy(short, {"socket": '"' + "s" * 120 + '"'})
        agent = DeployedAgent(policy)
        with pytest.raises(ConfigError, match="longer than the 107 bytes"):
            listen(agent, allow_same_user=True)
        agent.close()


@pytest.mark.lengthy
def test_the_process_serves_until_it_is_told_to_end_and_logs_json(tmp_path):
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:
        policy = write_policy(Path(place))
        command = [sys.executable, "-m", "fedlearn.holder.deployed", str(policy), "--same-user"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            while not is_answering(Path(place) / "agent.sock") and time.monotonic() < deadline:
                time.sleep(0.05)
            reply = ask(Path(place) / "agent.sock", 0, Frame("identify", SESSION, 0, 0).to_bytes(), seconds=10)
            assert reply.startswith(client_id(0))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert process.stderr is not None
            lines = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert {"time", "level", "logger", "message"} <= set(lines[0])


def test_what_keeps_it_from_starting_is_one_line_and_an_exit_code(tmp_path, capsys):
    policy = write_policy(tmp_path)
    (tmp_path / "identity.key").chmod(0o644)
    assert main([str(policy)]) == 2
    assert main([str(policy), "--group", "no-such-group"]) == 2
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert "lets others read the key" in first["message"]
    assert "no group no-such-group" in second["message"]
