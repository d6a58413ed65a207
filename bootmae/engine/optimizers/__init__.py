"""Parameter groups with layer-wise learning rates, guarded optimizer wrappers, the schedule."""
