"""The data holder's side of a round: its context, its agent, its socket, its positions."""
