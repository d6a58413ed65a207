"""The runner, its loops, and the state that a run resumes from."""
