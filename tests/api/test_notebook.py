"""examples/quickstart.ipynb: its cells run, and what is stored with them is small and fit to be read."""

import json
import os
import re
import subprocess
import sys

import pytest

from bootmae.places import REPOSITORY

NOTEBOOK = REPOSITORY / 'examples' / 'quickstart.ipynb'
CELLS = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
CODE = [cell for cell in CELLS if cell['cell_type'] == 'code']
NUMBER = re.compile(r'\d+\.\d+')


def stored(cell: dict, kind: str) -> str:
    """The stored text of a cell on stdout (``stdout``) or as a picture (``image/png``)."""
    if kind == 'stdout':
        return ''.join(''.join(out['text']) for out in cell['outputs'] if out.get('name') == kind)
    return ''.join(''.join(out.get('data', {}).get(kind, '')) for out in cell['outputs'])


def test_stored_outputs():
    """All cells were run in order, without warnings, log lines and paths of a machine."""
    assert NOTEBOOK.stat().st_size < 500_000
    assert [cell['execution_count'] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert [bool(stored(cell, 'image/png')) for cell in CODE] == [False] * 4 + [True] * 3
    text = '\n'.join(stored(cell, 'stdout') for cell in CODE)
    assert {out.get('name') for cell in CODE for out in cell['outputs']} <= {'stdout', None}
    assert len(text.splitlines()) < 15
    assert not re.search(r'/tmp|/home|/root|/work|Warning|INFO', json.dumps([cell['outputs'] for cell in CODE]))


@pytest.mark.slow
def test_the_cells_run(tmp_path):
    """In a fresh process, with fewer epochs; what they print has the stored form, whatever the numbers are."""
    code = '\n\n'.join(''.join(cell['source']) for cell in CODE)
    assert 'max_epochs=25,' in code
    code = code.replace('max_epochs=25,', 'max_epochs=3,')
    (tmp_path / 'quickstart.py').write_text(code, encoding='utf-8')
    env = dict(MPLBACKEND='Agg', TMPDIR=str(tmp_path), OMP_NUM_THREADS='1', PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore:FigureCanvasAgg', 'quickstart.py'],
        cwd=tmp_path,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    expected = ''.join(stored(cell, 'stdout') for cell in CODE)
    assert NUMBER.sub('#', done.stdout) == NUMBER.sub('#', expected.replace('epoch_25', 'epoch_3'))
    assert done.stderr == ''
    assert float(re.search(r'^([\d.]+) %', done.stdout, re.MULTILINE)[1]) > 20  # chance is 6
