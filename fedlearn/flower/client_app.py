"""The ClientApp: it carries a frame to the holder's agent and the answer back, and knows nothing of either."""

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlearn.crypto.labels import REFUSAL
from fedlearn.errors import ProtocolError
from fedlearn.flower.records import MESSAGE_TYPES, pack, unpack

__all__ = ["Carry", "make_client_app"]

# (context of the node, stage, frame, seconds left) -> reply
Carry = Callable[[Context, str, bytes, float], bytes]


def make_client_app(carry: Carry) -> ClientApp:
    """A ClientApp that answers every stage by `carry`; a message of another shape gets the constant refusal."""
    app = ClientApp()
    for stage, message_type in MESSAGE_TYPES.items():
        category, _, action = message_type.partition(".")
        register = app.train if category == "train" else app.query
        register(action)(_handler(stage, carry))
    return app


def _handler(stage: str, carry: Carry) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        try:
            reply = carry(context, stage, unpack(message.content), message.metadata.ttl)
        except ProtocolError:
            reply = REFUSAL
        return Message(pack(reply), reply_to=message)

    return handle
