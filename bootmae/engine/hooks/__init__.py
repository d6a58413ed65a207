"""The hooks of a run, one per file.

Besides mmengine's hook points they use three events of this package, sent by ``runner.call_hook``:

- ``flush_logs``: bring pending losses to the message hub, before a log line or a checkpoint needs them.
- ``report_progress(phase=None)``: this rank makes progress although no training step ends; keeps its heartbeat fresh.
- ``before_stop``: all ranks stop the run in this step; share what only one rank knows.
"""
