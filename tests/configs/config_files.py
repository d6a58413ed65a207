"""The files of configs/pretrain and configs/cls, and their opening comments."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in sorted((REPOSITORY / 'configs').glob('[pc]*/*.py'))}
PRETRAIN = [name for name, path in FILES.items() if path.parent.name == 'pretrain']
CLS = [name for name, path in FILES.items() if path.parent.name == 'cls']


def header(name: str) -> str:
    """The opening comment of a config on one line, without the comment signs."""
    lines = FILES[name].read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith('#'))
    return ' '.join(line.lstrip('# ') for line in lines[:end])


def init_of(name: str) -> tuple[str, int]:
    """Pretraining config and epoch of the checkpoint in the command of a downstream config."""
    found = re.search(r'--init work_dirs/(\w+)/epoch_(\d+)\.pth', header(name))
    return found[1], int(found[2])
