"""The coordinator's side of a run: rounds, attempts, booking of its noise, attesting, conclusion."""
