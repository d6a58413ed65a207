"""The processes of a run: launcher, heartbeats, asynchronous counters, exit codes, signals.

These modules import torch but nothing of this package.
"""
