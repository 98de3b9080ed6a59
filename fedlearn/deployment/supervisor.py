"""What `fedlearn client start` runs: the agent, and below another user Flower's SuperNode with the coordinator's code.

fedlearn client start
  ├ fedlearn.holder.deployed       records, key, policy, ledger
  └ fedlearn.flower.supernode     Flower's node; below it SuperExec and a process for each message

That a process is alive is not health: both parts end where they do not work any more, and are started again, whatever
their exit code. One that is there and gives no sign of life for a minute, stopped or stuck, is ended and started again;
a node gives signs only while the coordinator answers it, and is not blamed while that answers nobody. A part is up when
it does what it is for: a node once the coordinator let it in. What is wrong is said in a sentence, once.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from fedlearn.deployment.clock import check_offset, offset_to
from fedlearn.deployment.parts import Part
from fedlearn.errors import ConfigError, FedlearnError, RefusedError, RunFailedError
from fedlearn.host.durable import write_whole
from fedlearn.host.logs import Tell
from fedlearn.host.process_tree import adopt_orphans, end_descendants

__all__ = ["POLICY_KEY", "STATE_FILE", "Supervisor", "why_node_ended"]

STATE_FILE: Final = "state.json"
POLICY_KEY: Final = "policy_sha256"  # in it: what the agent runs by; None where it does not run here

_TICK_SECONDS: Final = 0.5
_READY_SECONDS: Final = 120.0
_CLOCK_SECONDS: Final = 3600.0

_log = logging.getLogger(__name__)

# What Flower says, and what it means; the first that fits.
_REASONS: Final = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the coordinator's certificate is not of the authority that this home joined, or has expired",
    ),
    ("WRONG_VERSION_NUMBER", "the coordinator answers in plain text at this address; expected TLS"),
    ("[code: 2004]", "the coordinator does not let this node in: it is registered no more, or was here a minute ago"),
    ("[code: 2001]", "the coordinator does not know this node; ask its operator whether the roster is closed"),
    ("401", "the coordinator turned a call away: this machine's clock is off, or the key was revoked"),
    ("Address already in use", "the port of Flower's node is taken on this machine"),
    ("Connection refused", "the coordinator does not answer"),
    ("of this Flower has no", "the flwr that is installed here does not fit; install the one of requirements.lock"),
)


def why_node_ended(lines: Sequence[str], code: int | None) -> str:
    """One sentence for the end of Flower's node, from what it said last."""
    said = "\n".join(lines)
    for sign, meaning in _REASONS:
        if sign in said:
            return meaning
    own = [line.partition("should be: ")[2] for line in lines if line.startswith("fedlearn: SuperNode is not")]
    return own[-1] if own else f"it ended with code {code}"


class Supervisor:
    """Looks after the parts of one home until it is told to stop. `tell` is given sentences for the holder.

    Guarantees:
        when `run` returns or raises, nothing that it started runs;
        without an agent that answers, no node is started.
    """

    def __init__(
        self,
        folder: Path,
        *,
        agent: Part | None,
        node: Part | None,
        agent_answers: Callable[[], bool],
        policy_sha256: str | None,
        address: str,
        tell: Tell,
    ) -> None:
        """`policy_sha256` is of the accepted policy, by which the agent runs; None without an agent."""
        self._folder, self._agent, self._node = folder, agent, node
        self._policy_sha256 = policy_sha256
        self._agent_answers, self._address, self._tell = agent_answers, address, tell
        self._next_start: dict[str, float] = {}
        self._last_told = ""
        self._problem: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Supervise until `stop` is set.

        Raises:
            ConfigError, RefusedError: the agent does not start, with its own sentence; the clock is too far off, or the
                authority's certificate is damaged.
        """
        adopt_orphans()
        logging.raiseExceptions = False  # a full disk must not end up as a traceback
        try:
            self._check_clock(first=True)
            if self._agent:
                self._agent.start()
            self._wait_for_agent(stop)
            if self._node and not stop.is_set():
                self._node.start()
                self._tell("the node is started")
            self._write_state()
            self._supervise(stop)
        finally:
            self._end()

    def _supervise(self, stop: threading.Event) -> None:
        next_clock = time.monotonic() + _CLOCK_SECONDS
        while not stop.wait(_TICK_SECONDS):
            for part in filter(None, (self._agent, self._node)):
                self._look_after(part)
            self._write_state()
            if time.monotonic() > next_clock:
                next_clock = time.monotonic() + _CLOCK_SECONDS
                self._check_clock(first=False)

    def _wait_for_agent(self, stop: threading.Event) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not self._agent_answers() and not stop.wait(0.1):
            if self._agent and not self._agent.is_alive:
                raise self._refused(self._agent)
            if self._agent and time.monotonic() > deadline:
                raise RunFailedError(f"the agent does not answer; what it said stands in {self._agent.log_file}")
        if not stop.is_set():
            self._tell("the agent answers")

    def _refused(self, agent: Part) -> FedlearnError:
        """Why the agent did not start, in its own words."""
        time.sleep(0.2)  # its last line may still be on its way
        assert agent.process is not None
        errors = [line for line in map(_parsed, agent.lines) if line.get("level") == "error"]
        kind = {2: ConfigError, 3: RefusedError}.get(agent.process.returncode)
        if kind is None or not errors:
            return RunFailedError(f"the agent does not start; what it said stands in {agent.log_file}")
        return kind(str(errors[-1]["message"]))

    def _look_after(self, part: Part) -> None:
        silent = part.is_alive and part.silence.is_long and self._is_to_blame(part)
        if silent:
            part.end()
        if part.is_alive:
            if part.is_up and part.lived > part.back_off.steady:
                self._problem.pop(part.name, None)
            return
        now = time.monotonic()
        if part.name not in self._next_start:
            self._next_start[part.name] = part.back_off.next_start(part.lived)
            self._note_end(part, "it gave no sign of life" if silent else None)
        if now >= self._next_start[part.name]:
            del self._next_start[part.name]
            part.start()

    def _is_to_blame(self, part: Part) -> bool:
        """Whether the silence is the part's own: a node has nothing to say while the coordinator does not answer."""
        try:
            away = part is self._node and offset_to(self._address, self._folder / "ca.crt") is None
        except ConfigError:
            away = False  # without the authority's certificate the node cannot work either, and says so
        if away:
            part.silence.heard()
            self._note(part, f"the coordinator at {self._address} does not answer, so the node is not let in")
        return not away

    def _note_end(self, part: Part, why: str | None) -> None:
        assert part.process is not None
        code = part.process.returncode
        if why is None:
            why = why_node_ended(part.lines, code) if part is self._node else f"it ended with code {code}"
        # A lease that must lapse first is no failure: a minute of it is nothing to tell.
        self._note(part, why, told=part is not self._node or part.back_off.is_failure or part.lived > 5)

    def _note(self, part: Part, why: str, *, told: bool = True) -> None:
        self._problem[part.name] = why
        sentence = f"the {part.name}: {why}; it is tried again"
        if told and sentence != self._last_told:
            self._last_told = sentence
            self._tell(sentence, part=part.name)

    def _check_clock(self, *, first: bool) -> None:
        if not self._node:
            return
        try:
            offset = offset_to(self._address, self._folder / "ca.crt")
            warning = None if offset is None else check_offset(offset)
        except ConfigError as error:
            if first:
                raise
            warning = str(error)
        if warning:
            self._tell(warning)

    def _write_state(self) -> None:
        state = {
            "process": os.getpid(),
            POLICY_KEY: self._policy_sha256,
            "parts": {
                part.name: {
                    "alive": part.is_alive,
                    "up": part.is_up,
                    "seconds": round(part.lived),
                    "problem": self._problem.get(part.name),
                }
                for part in filter(None, (self._agent, self._node))
            },
        }
        try:
            write_whole(self._folder / STATE_FILE, json.dumps(state, allow_nan=False).encode(), mode=0o600)
        except OSError as error:
            _log.warning("%s cannot be written: %s", STATE_FILE, error.strerror)

    def _end(self) -> None:
        for part in filter(None, (self._node, self._agent)):
            part.end()
        end_descendants()
        (self._folder / STATE_FILE).unlink(missing_ok=True)


def _parsed(line: str) -> Mapping[str, object]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
