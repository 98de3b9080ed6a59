"""What a data holder deploys."""
