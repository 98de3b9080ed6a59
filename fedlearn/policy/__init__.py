"""What may be asked of a holder: the policy of a run, the holder's own, and the roster."""
