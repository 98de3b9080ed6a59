"""Attacks on the real code path: what they prove of a run's privacy, beside what the run claims."""
