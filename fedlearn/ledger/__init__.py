"""What a data holder's releases cost, written down before they happen: `ledger` holds the file, `books` adds it up."""

from fedlearn.ledger.books import Booking, Reservation, SessionState
from fedlearn.ledger.ledger import Ledger

__all__ = ["Booking", "Ledger", "Reservation", "SessionState"]
