"""The files of configs/pretrain and configs/cls, and their opening comments."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in sorted((REPOSITORY / 'configs').glob('[pc]*/*.py'))}
PRETRAIN = [name for name, path in FILES.items() if path.parent.name == 'pretrain']
CLS = [name for name, path in FILES.items() if path.parent.name == 'cls']


def header(name: str) -> str:
    """The comment that a config opens with, without the comment signs, on one line."""
    lines = FILES[name].read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith('#'))
    return ' '.join(line.lstrip('# ') for line in lines[:end])


def init_of(name: str) -> tuple[str, int]:
    """Pretraining config and epoch of the file that a downstream config's command starts from."""
    found = re.search(r'--init work_dirs/(\w+)/epoch_(\d+)\.pth', header(name))
    return found[1], int(found[2])
