"""The commands of docs/tutorial.md, run in order as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bootmae.results.provenance import REPOSITORY
from bootmae.results.rows import read_rows

TUTORIAL = REPOSITORY / 'docs' / 'tutorial.md'
BLOCK = re.compile(r'(<!-- not run[^\n]*-->\n)?```bash\n(.*?)```', re.DOTALL)
LIMIT = 280  # seconds of one block, on a busy machine


def blocks() -> list[str]:
    """The shell blocks that are to be run."""
    return [text for skipped, text in BLOCK.findall(TUTORIAL.read_text(encoding='utf-8')) if not skipped]


def shell(command: str, work: Path) -> str:
    """Run a block as bash would with ``set -e``, at the top of the repository; its output."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    done = subprocess.run(
        ['bash', '-e', '-u', '-c', command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=os.environ | dict(PATH=path, WORK=str(work), OMP_NUM_THREADS='1'),
    )
    assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout + done.stderr


def test_blocks_are_found():
    found = blocks()
    assert len(found) == 8
    assert not any('make setup' in block for block in found)
    assert all('tools/' in block for block in found)


@pytest.mark.slow
def test_the_tutorial(tmp_path):
    said = [shell(block, tmp_path) for block in blocks()]
    assert 'global_batch' in said[0]
    assert '--resume' in said[1]  # what to do is said where the run stops
    assert (tmp_path / 'pretrain' / 'epoch_12.pth').is_file()
    rows = read_rows(tmp_path / 'rows.csv')
    assert [(row.method, row.task) for row in rows] == [
        (method, task) for method in ('untrained', 'bootmae') for task in ('knn', 'linear')
    ]
    assert all(10 < row.value <= 100 for row in rows)  # one class in ten
    assert 'loaded 30/30 encoder tensors' in said[4]
    assert len(list((tmp_path / 'pictures').glob('*.png'))) == 3
    assert 'BootMAE' in (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert 'finetune-digits/bootmae-1' in said[7]
