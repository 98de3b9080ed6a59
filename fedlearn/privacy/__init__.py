"""Differential privacy: what bounds, what hides and what counts. No torch, so that an auditor can check it alone."""
