"""What the releases of a data holder cost, written down before they happen: `rows`, their sums, the file."""

from fedlearn.ledger.books import Booking
from fedlearn.ledger.ledger import Ledger
from fedlearn.ledger.rows import COORDINATOR, Reservation, SessionState

__all__ = ["COORDINATOR", "Booking", "Ledger", "Reservation", "SessionState"]
