"""Local work on records: training steps, sums of clipped gradients, scores. Public names are in the modules."""
