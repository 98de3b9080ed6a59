"""What a coordinator deploys."""
