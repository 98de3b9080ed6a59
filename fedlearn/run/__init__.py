"""What a run leaves on disk: its checkpoint and its trained model."""
