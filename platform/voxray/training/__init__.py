"""Training: the loop, the optimizer and its schedule, checkpoints. `distributed.training` runs it on a cluster."""
