"""How a holder becomes a member: invitations, joining, acceptance of the roster."""
