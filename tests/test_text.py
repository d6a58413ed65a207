"""Counts and file names in messages."""

import re
from pathlib import Path

import pytest

from bootmae.text import count_of, printable

PACKAGE = Path(__file__).resolve().parents[1] / 'bootmae'
NOUNS = (
    'images|files|faults|notes|classes|folders|epochs|tensors|weights|blocks|processes|seeds|cells|rows|runs|masks|labels|GPUs|'
    'parameters|groups|channels|annotations|iterations|queries'
)
COUNTED = re.compile(rf'\{{(?:len\([^{{}}]*\)|[\w.]*count[\w.]*|levels[^{{}}]*)(?::,)?\}} (?:\w+ )?(?:{NOUNS})\b')
# Numbers that are never 1 there
PLURAL = {'config/checks.py', 'report/verdicts.py'}


@pytest.mark.parametrize(
    'number, words, text',
    [
        (0, ('fault',), '0 faults'),
        (1, ('fault',), '1 fault'),
        (1200, ('fault',), '1,200 faults'),
        (1, ('class', 'classes'), '1 class'),
        (2, ('class', 'classes'), '2 classes'),
    ],
)
def test_counts(number, words, text):
    assert count_of(number, *words) == text


def test_names_of_files():
    assert printable('/a/b c.jpg') == '/a/b c.jpg'
    assert printable('näh/\udce9\n.jpg') == 'näh/\\xe9\\n.jpg'


def test_messages_count_with_the_helper():
    """No message in the package says "1 faults"."""
    found = {
        f'{path.relative_to(PACKAGE)}: {match[0]}'
        for path in PACKAGE.rglob('*.py')
        for match in COUNTED.finditer(path.read_text())
        if str(path.relative_to(PACKAGE)) not in PLURAL
    }
    assert found == set()
