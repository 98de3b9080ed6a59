"""A data holder's home: keys, users, the way to the coordinator, policy, room, ledger, records."""

from collections.abc import Iterator
from pathlib import Path

from fedlearn.deployment.doctor.check import Check, error, looked, ok, warning
from fedlearn.deployment.doctor.files import closed_folder, flower_home, secret_lines
from fedlearn.deployment.doctor.network import date_line, way_lines
from fedlearn.deployment.doctor.records import records_line
from fedlearn.deployment.holder_status import policy_differs, running_parts
from fedlearn.deployment.policy_check import PolicyCheck, check_policy
from fedlearn.deployment.starting import NODE_FOLDER, holder_process, known_to_node
from fedlearn.deployment.users import AGENT_USER, NODE_USER, Users, may
from fedlearn.enrolment.joining import Joined
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.holder.deployed import read_identity
from fedlearn.holder.socket import is_answering
from fedlearn.host.memory_limits import Room, check_holder_room
from fedlearn.ledger.statement import read_statement
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.privacy.calibration import Plan
from fedlearn.secagg.transcript import LANE_BYTES

__all__ = ["check_holder"]


def check_holder(home: Path, run: Path | None) -> Iterator[Check]:
    """Every line about the holder's home; `run` is a run's file by which policy, machine and records are judged."""
    folder = home / "client"
    policy: HolderPolicy | None = None
    try:
        policy = HolderPolicy.read(folder / "client.toml")
    except ConfigError as problem:
        yield error("policy", str(problem), "correct client.toml: docs/policy.md explains each line")
    yield from looked("folder", f"run this as root or as the owner of {folder}", lambda: [closed_folder(folder)])
    yield from secret_lines([policy.key_path if policy else folder / "identity.key", folder / "node.key"])
    yield from looked("joined", "fedlearn client join CODE, with a code of the operator's", lambda: _way(home))
    if policy is not None:
        yield from _by_policy(policy, run)
    yield from looked("flower home", f"run this as root or as the owner of {folder}", lambda: [flower_home(folder)])
    yield from looked("running", "fedlearn client stop, then start it again", lambda: _running(folder, policy))


def _by_policy(policy: HolderPolicy, run: Path | None) -> Iterator[Check]:
    yield from looked("users", "run this as root", lambda: _users(policy))
    yield from looked("policy", "fedlearn client roster fetch, compare, then roster accept", lambda: _policy(policy))
    judged = None
    if run is not None:
        try:
            judged = check_policy(policy.path, run)
            yield _verdict(judged)
        except FedlearnError as problem:
            yield error("run", str(problem), f"fedlearn client policy check {policy.path} {run}")
    yield from looked("room", "make room", lambda: [_room(policy, judged.plan if judged else None)])
    yield from looked("ledger", "bring back ledger.db and ledger.db.count together", lambda: _ledger(policy, judged))
    for name in policy.dataset:
        yield records_line(policy, name, run)


def _way(home: Path) -> Iterator[Check]:
    joined = Joined.load(home)
    yield ok("joined", f"as {joined.name}, with the coordinator at {joined.address}")
    yield date_line("authority", joined.authority, "the operator makes a new federation and invites everybody again")
    yield from way_lines(joined.address, joined.folder / "ca.crt")


def _users(policy: HolderPolicy) -> Iterator[Check]:
    folder = policy.path.parent
    remedy = "as root: fedlearn client join CODE --system, into a new home"
    try:
        users = Users.find()
    except ConfigError:
        told = "agent and node can run as one user alone, whose records and key the coordinator's code could then read"
        yield warning("users", f"{AGENT_USER} and {NODE_USER} are not users of this machine: {told}", remedy)
        return
    if folder.stat().st_uid != users.agent.pw_uid:
        yield warning("users", f"{folder} does not belong to {AGENT_USER}: both parts run as its owner", remedy)
        return
    agent = (users.agent.pw_uid, {users.agent.pw_gid, users.group})
    node = (users.node.pw_uid, {users.node.pw_gid, users.group})
    files = [path for name in policy.dataset if (path := policy.file_of(name)) is not None]
    secrets = [path for path in (policy.key_path, policy.path, policy.ledger_path, *files) if path.exists()]
    seen = [str(path) for path in secrets if may(*node, path, 4)]
    unseen = [str(path) for path in secrets if not may(*agent, path, 4)]
    door = policy.socket_path.parent
    if seen:
        yield error("users", f"{NODE_USER} could read {', '.join(seen)}", "chmod 600 these files, or move them")
    if unseen:
        told = f"{AGENT_USER} cannot read {', '.join(unseen)}"
        yield error("users", told, f"chown {AGENT_USER} these files, and let it enter their folders")
    if door.exists() and not may(*node, door, 1):
        told = f"{NODE_USER} cannot enter {door}, where agent.socket lies"
        move = 'let it lie in a folder of its own: agent.socket = "../door/agent.sock"'
        yield error("users", told, move if door == folder else f"chgrp fedlearn {door}; chmod 750 {door}")
    elif (socket := known_to_node(folder.parent / NODE_FOLDER)[1]) != policy.socket_path.resolve():
        told = (
            f"the node looks for the agent at {socket}; the policy has agent.socket at {policy.socket_path.resolve()}"
        )
        yield error("users", told, "write the former into the policy: the latter is not told to the node any more")
    elif not seen and not unseen:
        yield ok("users", f"{AGENT_USER} owns records, key and ledger; {NODE_USER} can read none of them")


def _policy(policy: HolderPolicy) -> Iterator[Check]:
    loaded = HolderPolicy.load(policy.path)
    read_identity(loaded)
    missing = loaded.confirmations.missing(loaded.roster, except_for=loaded.client_id)
    members = f"roster of {len(loaded.roster.members)} members, {len(missing)} of them not confirmed by you"
    yield ok("policy", f"{policy.path} holds; {members}")


def _verdict(judged: PolicyCheck) -> Check:
    if judged.refused:
        told = "; ".join(verdict.sentence for verdict in judged.refused)
        return error("run", f"the policy refuses it: {told}", "agree with the coordinator on another run, or policy")
    return ok("run", f"the policy accepts it, for data set {judged.dataset_id}")


def _room(policy: HolderPolicy, plan: Plan | None) -> Check:
    room = Room.at(policy.path.parent)
    free = f"{room.disk / 1e9:.1f} GB of disk and {room.memory / 1e9:.1f} GB of memory are free"
    message = plan.bytes_per_round if plan else LANE_BYTES * policy.limits.max_dimension
    try:
        check_holder_room(room, message=message)
    except ConfigError as problem:
        if plan:
            return error("room", str(problem), "make room, or agree on a smaller model")
        told = f"the largest model that the policy accepts would not fit: {problem}"
        return warning("room", told, "make room, or lower limits.max_dimension")
    return ok("room", f"{free}: enough for a model of {message // LANE_BYTES} entries")


def _ledger(policy: HolderPolicy, judged: PolicyCheck | None) -> Iterator[Check]:
    if not policy.ledger_path.exists():
        yield ok("ledger", f"{policy.ledger_path}: nothing was booked yet")
        return
    statement = read_statement(policy.ledger_path)
    yield ok("ledger", f"{statement.entries} rows, and each is what was written")
    for account in statement.accounts:
        section = policy.dataset.get(account.dataset_id)
        if section is None:
            continue
        name, budget = f"budget of {account.dataset_id}", account.budget
        if (budget.max_epsilon, budget.max_delta) != (section.max_epsilon, section.max_delta):
            told = f"the ledger has epsilon {budget.max_epsilon} and delta {budget.max_delta} for life"
            yield error(name, f"{told}; the policy says otherwise", "write the ledger's figures into the policy")
            continue
        left = budget.max_epsilon - account.spent
        asked = judged.plan.ledger_guarantee if judged and judged.plan else None
        if asked and judged and judged.dataset_id == account.dataset_id and asked.epsilon > left:
            told = f"{left:.3f} of epsilon {budget.max_epsilon} are left; the run may cost {asked.epsilon:.3f}"
            yield warning(name, told, "expect that this holder stops taking part within the run")
        elif left <= 0:
            yield warning(name, f"epsilon {budget.max_epsilon} is spent", "no run can use these records any more")
        else:
            yield ok(name, f"{account.spent:.3f} of epsilon {budget.max_epsilon} are spent")


def _running(folder: Path, policy: HolderPolicy | None) -> Iterator[Check]:
    process = holder_process(folder)
    if process is None:
        yield ok("running", "not started")
        return
    for name, part in running_parts(folder).items():
        problem = part["problem"]
        if problem is None and name == "node" and not part["up"]:
            problem = "the coordinator has not let it in"
        if problem:
            yield warning("running", f"the {name}: {problem}", f"see {name}.jsonl in the folder log")
    if policy_differs(folder):
        told = "the policy's file was changed and is not what runs: the agent obeys the one that was accepted"
        yield warning("running", told, "fedlearn client stop, then start, which shows it and asks")
    if policy is not None and not is_answering(policy.socket_path):
        yield error("running", f"process {process} runs, and its agent does not answer", "stop and start it again")
    else:
        yield ok("running", f"by process {process}; the agent answers")
