"""Result rows of this machine's runs: the number, and where it and its encoder come from."""

import datetime

from ..checkpoints import read_checkpoint
from ..provenance import device_name, git_commit, portable
from ..report.rows import ResultRow


def run_facts(checkpoint: str | None) -> dict:
    """What a file of this suite says of the run that made it (``ProvenanceHook``); empty for other files."""
    if not checkpoint:
        return {}
    meta = read_checkpoint(checkpoint).get('meta')
    return meta.get('bootmae', {}) if isinstance(meta, dict) else {}


def result_row(checkpoint: str | None, checkpoint_hash: str, **fields) -> ResultRow:
    """A row for an encoder that was judged just now.

    Args:
        checkpoint: file of the encoder; None: untrained.
        checkpoint_hash: of the verdict of its loading; empty: untrained.
        fields: the other columns, ``method`` among them unless the file tells it.
    """
    run = run_facts(checkpoint)
    known = dict(method=run.get('method', 'untrained').lower(), config=run.get('config', ''),
                 precision=run.get('precision', ''), seconds=run.get('seconds', 0.0), images=run.get('images', 0))
    return ResultRow(**known | dict(
        checkpoint=portable(checkpoint), checkpoint_hash=checkpoint_hash, commit=git_commit(), device=device_name(),
        date=datetime.date.today().isoformat()) | {key: value for key, value in fields.items() if value is not None})
