"""Stage "attest" at the coordinator: every member is shown the final model once, and what it signs is kept."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from fedlearn.certificate.attestation import ATTEST, Attestation
from fedlearn.coordinator.attempts import Receive
from fedlearn.errors import ProtocolError
from fedlearn.policy.roster import Roster
from fedlearn.run.checkpoint import RunFolder
from fedlearn.secagg.messages import REFUSAL, Envelope
from fedlearn.secagg.transcript import Position

__all__ = ["attestations_in", "collect_attestations"]

_FILE: Final = "attestations.jsonl"

_log = logging.getLogger(__name__)


def collect_attestations(
    folder: RunFolder,
    *,
    ask: Callable[[Mapping[int, bytes], Receive], None],
    roster: Roster,
    position: Position,
    config: bytes,
    model: bytes,
    event: bytes | None,
) -> None:
    """Ask whoever has not attested yet, and write each attestation that holds into the run folder.

    `position` is that of the question's frame, `event` the canonical one of a release as a holder books it. Whoever
    refuses, is away, or signs another model, ledger or event than it says is left out: a certificate names those who
    attest, and a run does not fail for the others.
    """
    known = {attestation.client_id for attestation in attestations_in(folder)}
    waiting = {n: model for n, entry in enumerate(roster.members) if entry.client_id not in known}
    config_hash, model_hash = hashlib.sha256(config).digest(), hashlib.sha256(model).digest()

    def receive(member: int, sealed: bytes) -> bool:
        entry = roster.members[member]
        envelope = Envelope(position, ATTEST, entry.client_id, model_hash)
        try:
            reply = bytes(envelope.open(entry.key, sealed))
            if reply == REFUSAL:
                return True
            attestation = Attestation.from_reply(
                reply, client_id=entry.client_id, key=entry.key, config_hash=config_hash
            )
        except ProtocolError as error:
            _log.info("an attestation of client %s is not used: %s", entry.client_id.hex(), error)
            return False
        session, roster_hash = position.session, roster.sha256
        if attestation.holds(session=session, roster_hash=roster_hash, model_hash=model_hash, event=event):
            folder.append(_FILE, attestation.as_dict())
        else:
            _log.info("client %s signs another model, ledger or configuration", entry.client_id.hex())
        return True

    ask(waiting, receive)


def attestations_in(folder: RunFolder) -> tuple[Attestation, ...]:
    """What members attested of the run in `folder`, each once, by client id."""
    known = {line["client_id"]: Attestation.from_dict(line) for line in folder.lines(_FILE)}
    return tuple(known[client_id] for client_id in sorted(known))
