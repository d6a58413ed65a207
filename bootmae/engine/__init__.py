"""The running of a training: runner and loops, hooks, optimizers."""
