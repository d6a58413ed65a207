"""The runner, its loops, and the state that a run is resumed from."""
