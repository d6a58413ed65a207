"""Everything that runs a training: the runner and its loops, hooks, optimizers."""
