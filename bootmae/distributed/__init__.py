"""The processes of a run: launcher, heartbeats, counters without waiting, exit codes, signals.

Needs torch alone, and nothing of the package.
"""
