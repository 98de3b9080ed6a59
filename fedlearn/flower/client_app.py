"""The ClientApp: it carries a frame to the holder's agent and the answer back, and knows nothing of either."""

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlearn.flower.records import MESSAGE_TYPES, pack, unpack

__all__ = ["Carry", "make_client_app"]

# (context of the node, stage, frame) -> reply
Carry = Callable[[Context, str, bytes], bytes]


def make_client_app(carry: Carry) -> ClientApp:
    """A ClientApp that answers every stage by `carry`."""
    app = ClientApp()
    for stage, message_type in MESSAGE_TYPES.items():
        category, _, action = message_type.partition(".")
        register = app.train if category == "train" else app.query
        register(action)(_handler(stage, carry))
    return app


def _handler(stage: str, carry: Carry) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        return Message(pack(carry(context, stage, unpack(message.content))), reply_to=message)

    return handle
