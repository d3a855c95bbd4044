"""Training: the loop, the optimizer and its schedule, checkpoints. `pipelines.train` runs it on a cluster."""
