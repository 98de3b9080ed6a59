"""What a run guarantees, in a file that anyone can check: built from bookings, signed, verified without the run."""
