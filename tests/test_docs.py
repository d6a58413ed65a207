"""Files that README and docs name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r'\b(?:bootmae|benchmarks|configs|docs|tests|tools|results)/[\w/*-]+'
                   r'\.(?:py|sh|md|csv|txt|json|npz)\b')
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    names = set(NAMED.findall(page.read_text(encoding='utf-8')))
    assert not [name for name in sorted(names) if not list(ROOT.glob(name))]


def test_the_names_are_found():
    names = NAMED.findall((ROOT / 'docs' / 'reliability.md').read_text(encoding='utf-8'))
    assert 'tests/engine/test_loops.py' in names
    assert len(set(names)) > 20
