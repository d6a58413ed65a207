"""Optimizer wrappers that skip bad steps, parameter groups with layer-wise lr decay, and the schedule."""
