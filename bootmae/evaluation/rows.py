"""Result rows of this machine's runs: the number, and where it and its encoder come from."""

import datetime
from pathlib import Path

from ..checkpoints import read_checkpoint
from ..results.provenance import device_name, git_commit, portable
from ..results.rows import ResultRow


def run_facts(checkpoint: str | None) -> dict:
    """What a file of this suite says of the run that made it (``ProvenanceHook``); empty for other files."""
    if not checkpoint:
        return {}
    meta = read_checkpoint(checkpoint).get('meta')
    return meta.get('bootmae', {}) if isinstance(meta, dict) else {}


def result_row(checkpoint: str | None, checkpoint_hash: str, gpu_seconds: float = 0.0, **fields) -> ResultRow:
    """A row for an encoder that was judged just now.

    Args:
        checkpoint: file of the encoder; None: untrained.
        checkpoint_hash: of the encoder that was loaded; empty: untrained.
        gpu_seconds: GPU-seconds that the evaluation took; those of the pretraining are added.
        fields: the other columns, ``method`` among them unless the file tells it.
    """
    run = run_facts(checkpoint)
    gpu_hours = round((run.get('gpu_seconds', 0.0) + gpu_seconds) / 3600, 4)
    method = run.get('method', Path(checkpoint).stem if checkpoint else 'untrained')  # of other files: their name
    known = dict(
        method=method.lower(),
        config=run.get('config', ''),
        precision=run.get('precision', ''),
        seconds=run.get('seconds', 0.0),
        images=run.get('images', 0),
        memory=run.get('memory', 0.0),
    )
    here = dict(
        checkpoint=portable(checkpoint),
        checkpoint_hash=checkpoint_hash,
        commit=git_commit(),
        device=device_name(),
        date=datetime.date.today().isoformat(),
        gpu_hours=gpu_hours,
    )
    return ResultRow(**known | here | {key: value for key, value in fields.items() if value is not None})
