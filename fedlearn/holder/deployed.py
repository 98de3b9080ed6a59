"""The agent of one data holder as a process of its own: it obeys the holder's policy file, and nothing else.

python -m fedlearn.holder.deployed CLIENT_TOML [--accepted] [--same-user | --group GROUP]

With --accepted, as `fedlearn client start` runs it, policy and roster are those that the holder accepted at the start.

It ends on SIGTERM, or when its standard input closes: so it goes when whoever supervises it goes.
"""

import argparse
import grp
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from torch import nn

from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.key_files import read_signing_key
from fedlearn.crypto.signatures import SigningKey
from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError, FedlearnError, ProtocolError, RefusedError
from fedlearn.holder.context import Holder, HolderContext
from fedlearn.holder.frames import MAX_FRAME_BYTES, REFUSAL, Frame
from fedlearn.holder.last_run import WorkWatch, keep_unusable
from fedlearn.holder.masked_agent import MaskedAgent, seal
from fedlearn.holder.positions import Positions
from fedlearn.holder.secrecy import close_to_others
from fedlearn.holder.socket import AgentServer, check_socket_path, is_answering, other_user, same_user
from fedlearn.host.durable import write_whole
from fedlearn.host.heartbeat import give_pulse
from fedlearn.host.logs import log_as_json
from fedlearn.host.memory_limits import MODELS_KEPT, Room, check_holder_room
from fedlearn.ledger import Ledger
from fedlearn.policy.acceptance import Acceptance
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.policy.run_policy import Policy
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.round.agreement import Agreement
from fedlearn.round.source import Source, Unusable, model_dimension, start_model
from fedlearn.run.trained import model_file
from fedlearn.secagg.messages import decode_advertise
from fedlearn.secagg.stages import Member
from fedlearn.secagg.transcript import LANE_BYTES
from fedlearn.stages import ADVERTISE, ATTEST, IDENTIFY, MASKED
from fedlearn.task.classification import class_names
from fedlearn.training.device import pick_device

__all__ = ["MODELS_FOLDER", "PAUSED_FILE", "DeployedAgent", "listen", "main", "read_identity"]

# Beside the policy, while its holder wants no new attempt to begin.
PAUSED_FILE: Final = "paused"
# Beside the policy: the final models of sessions, as their coordinators showed them at the end.
MODELS_FOLDER: Final = "models"

_SESSIONS_KEPT: Final = 4  # each has a warm model
_AT_ONCE: Final = 8  # requests: a copy waits for its first, and whatever burns an attempt must get through
_BESIDE_THE_MODEL: Final = 1 << 21  # bytes of a frame: configuration, boxes, names of tensors

_log = logging.getLogger(__name__)


class DeployedAgent:
    """One holder: policy, key, roster, ledger and records behind `handle`. Sessions share the ledger, nothing else.

    Guarantees:
        without a valid policy, its accepted roster and the key that the roster has for this holder, there is no agent;
        a configuration is about one data set of the policy, and reads no other;
        a model of too many entries, or one that this machine has no room for, is refused before memory is taken for it;
        while it is paused no attempt begins; one that began goes on.

    Raises:
        ConfigError: the policy or the key cannot be used, or others may read the key.
        RefusedError: the roster is not the accepted one or has another key, or the ledger is of other budgets.
    """

    def __init__(self, policy_path: Path, *, same_user: bool = False, accepted: bool = False) -> None:
        """`same_user`: the coordinator's code runs as this user too; rounds are reminded of it, certificates say so.

        `accepted`: it obeys what was accepted at the start, whatever the policy's file has by now.
        """
        self._same_user = same_user
        self._policy = _accepted(policy_path) if accepted else HolderPolicy.load(policy_path)
        self._roster = self._policy.roster
        key = read_identity(self._policy)
        self._member = Member(self._policy.client_id, key, self._roster.keys)
        self._device = pick_device("auto")
        self._limits = {name: self._policy.for_dataset(name) for name in self._policy.dataset}
        self._ledger = Ledger(self._policy.ledger_path)
        self._positions = _UnlessPaused(self._policy.ledger_path, policy_path.parent / PAUSED_FILE)
        for name, section in self._policy.dataset.items():
            self._ledger.open_dataset(
                name,
                privacy_unit=PrivacyUnit(section.privacy_unit),
                max_epsilon=section.max_epsilon,
                max_delta=section.max_delta,
                order=None,
            )
        self._sessions: dict[str, MaskedAgent] = {}
        self._beginning = threading.Lock()

    @property
    def policy(self) -> HolderPolicy:
        """What it obeys."""
        return self._policy

    @property
    def ledger(self) -> Ledger:
        """What it booked."""
        return self._ledger

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()
        self._positions.close()

    def handle(self, client: int, stage: str, request: bytes) -> bytes:
        """The reply to one frame: an `holder.socket.Answer`; `client` is 0, for there is one.

        Guarantees:
            those of `MaskedAgent.handle`;
            a reply with a vector leaves at the earliest `reply_after_seconds` after its request came.
        """
        del client
        began = time.monotonic()
        reply = self._reply(stage, request)
        if stage == MASKED:
            time.sleep(max(0.0, began + self._policy.agent.reply_after_seconds - time.monotonic()))
        return reply

    def _reply(self, stage: str, request: bytes) -> bytes:
        try:
            frame = Frame.of_stage(stage, request)
        except ProtocolError as error:
            _log.info("a request is refused: %s", error)
            return REFUSAL
        if stage == IDENTIFY:
            return seal(self._member, frame, self._member.client_id)
        try:
            if stage == ADVERTISE:
                return self._begin(frame, request)
            if stage == ATTEST:
                return self._attest(frame, request)
            if frame.session not in self._sessions:
                raise ProtocolError("a stage of an unknown session")
        except FedlearnError as error:
            _log.info("stage %s of session %s is refused: %s", stage, frame.session, error)
            return seal(self._member, frame, REFUSAL)
        return self._sessions[frame.session].handle(stage, request)

    def _begin(self, frame: Frame, request: bytes) -> bytes:
        """Stage 0. A session is kept from the first one that is not refused.

        Raises:
            FedlearnError: the configuration cannot be read, or no data set of the policy is meant.
        """
        with self._beginning:
            agent = self._sessions.get(frame.session) or self._new_agent(frame.session, decode_advertise(frame.body)[1])
            reply = agent.handle(ADVERTISE, request)
            if not reply.startswith(REFUSAL):
                _log.info("session %s, round %d, attempt %d begins", frame.session, frame.round, frame.attempt)
                if self._same_user:
                    _log.warning("--same-user: the coordinator's code runs as the user who owns records and key")
                self._keep(frame.session, agent)
            return reply

    def _attest(self, frame: Frame, request: bytes) -> bytes:
        """Stage 5, also of a session that began before the last restart or before many others.

        Raises:
            FedlearnError: the session never began, or its data set is not in the policy any more.
        """
        with self._beginning:  # no attempt begins beside an agent that does not know of it
            if (agent := self._sessions.get(frame.session)) is None:
                config = self._positions.configuration(frame.session)
                if config is None:
                    raise ProtocolError(
                        "an attestation for a session that never began, or released nothing and is long ago"
                    )
                agent = self._new_agent(frame.session, config)
            return agent.handle(ATTEST, request)

    def _keep(self, session: str, agent: MaskedAgent) -> None:
        kept = {name: known for name, known in self._sessions.items() if name != session}
        while len(kept) >= _SESSIONS_KEPT:
            kept.pop(next(iter(kept))).forget()
        self._sessions = {**kept, session: agent}

    def _new_agent(self, session: str, body: bytes) -> MaskedAgent:
        """This holder in a session of that configuration, with the data set that it is about."""
        config = RunConfig.from_bytes(body)
        dataset_id = self._policy.dataset_of(config)
        source, limits = Source.of(self._policy, dataset_id), self._limits[dataset_id]
        watch = WorkWatch(self._policy.path.parent, dataset_id, session)
        records = self._reader(source, config, dataset_id, watch)
        holder = Holder(self._policy.client_id, dataset_id, records, fingerprint=source.fingerprint)
        context = HolderContext(
            policy=limits,
            ledger=self._ledger,
            positions=self._positions,
            build=self._builder(source, limits),
            population_size=len(self._roster.members),
            device=self._device,
            keep_model=partial(self._keep_model, source),
            same_user=self._same_user,
            on_failure=watch.failed,
        )
        return MaskedAgent(holder, self._member, self._roster, context)

    def _reader(self, source: Source, config: RunConfig, dataset_id: str, watch: WorkWatch) -> Callable[[], Dataset]:
        """Reads the records; once a session the holder, and nobody else, is told which rows are none."""
        told: list[Unusable] = []

        def read() -> Dataset:
            watch.begin()
            records, unusable = source.loaded(config)
            if not told:
                told.append(unusable)
                keep_unusable(self._policy.path.parent, dataset_id, unusable)
                if unusable.reasons:
                    _log.warning("data set %s: %s", dataset_id, unusable.sentence)
            return records

        return read

    def _keep_model(self, source: Source, session: str, weights: Vector, agreement: Agreement) -> None:
        """The final model of a session as a file, that of the run folder byte for byte; the latest few are kept."""
        folder = self._policy.path.parent / MODELS_FOLDER
        like, layout = source.blank(agreement.config), agreement.layout
        content = model_file(
            weights, layout, agreement.config, input_shape=like.input_shape, classes=class_names(like.task)
        )
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            write_whole(folder / f"{session}.safetensors", content, mode=0o600)
            for old in sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)[:-MODELS_KEPT]:
                old.unlink()
        except OSError as error:
            _log.warning("the final model cannot be kept: %s", error.strerror)

    def _builder(self, source: Source, limits: Policy) -> Callable[[RunConfig], nn.Module]:
        search = [self._policy.path.parent]

        def build(config: RunConfig) -> nn.Module:
            like = source.blank(config)
            size = model_dimension(config, like, search=search)
            if size > limits.max_dimension:
                raise RefusedError(f"a model of {size} entries; the policy accepts at most {limits.max_dimension}")
            check_holder_room(Room.at(self._policy.path.parent), message=LANE_BYTES * size)
            return start_model(config, like, search=search)

        return build


class _UnlessPaused(Positions):
    """Positions that do not move while a file is there: no attempt begins without moving one."""

    def __init__(self, path: Path, marker: Path) -> None:
        super().__init__(path)
        self._marker = marker

    def advance(self, dataset_id: str, session: str, round_number: int, attempt: int, config: bytes) -> None:
        if self._marker.exists():
            raise RefusedError("paused by the holder; go on with fedlearn client pause --end")
        super().advance(dataset_id, session, round_number, attempt, config)


def _accepted(path: Path) -> HolderPolicy:
    """The policy that was accepted at the start; the holder is told where the file is another one by now."""
    acceptance = Acceptance.kept(path.parent)
    if not acceptance.is_of(path):
        _log.warning(
            "%s was changed and is not what runs, which is what was accepted at the start (SHA-256 %s): "
            "fedlearn client stop, then start, to accept it",
            path,
            acceptance.policy_sha256,
        )
    return acceptance.holder_policy(path)


def read_identity(policy: HolderPolicy) -> SigningKey:
    """The holder's long-term key, the one that its roster has for it.

    Raises:
        ConfigError: it cannot be read, is not 32 bytes, or others may read it.
        RefusedError: the roster has another key for this holder.
    """
    path = policy.key_path
    key = read_signing_key(path)
    if policy.own_entry(policy.roster).key != key.public:
        raise RefusedError(
            f"{policy.roster_path}: its key of {policy.holder.client_id} is not that of {path}: "
            "somebody else would be believed to be you; do not accept this roster"
        )
    return key


def listen(agent: DeployedAgent, *, allow_same_user: bool, group: int | None = None) -> AgentServer:
    """The agent behind the socket of its policy: for another user in `group`, or for this user alone.

    Raises:
        ConfigError: the path cannot be listened at, or somebody listens there.
    """
    path = agent.policy.socket_path
    if not hasattr(socket, "SO_PEERCRED"):
        raise ConfigError("a deployed agent has to know its peer's user, which this system does not tell; use Linux")
    check_socket_path(path)
    if is_answering(path):
        raise ConfigError(f"{path}: an agent is listening there already; stop it first")
    longest = 4 * agent.policy.limits.max_dimension + _BESIDE_THE_MODEL
    try:
        path.unlink(missing_ok=True)
        return AgentServer(
            path,
            agent.handle,
            clients=1,
            allowed=same_user if allow_same_user else other_user,
            group=group,
            at_once=_AT_ONCE,
            places=_AT_ONCE,
            max_frame_bytes=min(longest, MAX_FRAME_BYTES),
        )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be listened at: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or the end of standard input; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fedlearn.holder.deployed")
    parser.add_argument("policy", type=Path)
    parser.add_argument("--accepted", action="store_true")
    parser.add_argument("--same-user", action="store_true")
    parser.add_argument("--group")
    options = parser.parse_args(arguments)
    log_as_json()
    close_to_others()
    try:
        group = grp.getgrnam(options.group).gr_gid if options.group else None
        agent = DeployedAgent(options.policy, same_user=options.same_user, accepted=options.accepted)
        server = listen(agent, allow_same_user=options.same_user, group=group)
    except KeyError:
        _log.error("there is no group %s on this machine", options.group)
        return ConfigError.exit_code
    except FedlearnError as error:
        _log.error("%s", error)
        return error.exit_code
    with server:
        _log.info("listening at %s", agent.policy.socket_path)
        give_pulse(lambda: server.is_accepting)
        _wait_for_the_end()
    agent.close()
    return 0


def _wait_for_the_end() -> None:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    def watch() -> None:
        while os.read(0, 1):
            pass
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    ended.wait()


if __name__ == "__main__":
    sys.exit(main())
