"""What the parties of a deployment do before and beside a run."""
