"""The configuration of a run, and what a user may write into it."""
