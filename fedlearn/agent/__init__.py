"""The data holder's side. `Agent.handle(stage, request) -> bytes` is the only way to a holder's records."""
