"""tools/matrix.py: what it reads from the tools' output, what it installs, and that the page says what the rows say."""
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / 'tools'))

import matrix  # noqa: E402

ROW = dict(date='2026-11-24', commit='abc', environment='originals', python='3.11.7', torch='torch 2.11.0',
           torchvision='torchvision 0.26.0', mmengine='mmengine 0.10.7', mmcv='mmcv-lite 2.1.0',
           mmpretrain='mmpretrain 1.2.0', mmdet='mmdet 3.3.0', mmseg='mmsegmentation 1.2.2', parity='3.4e-08',
           passed='10', failed='0', skipped='1', seconds='60', verdict='passes', reason='')
PARITY = """tests/golden/a.npz (pretraining): equal
  pixel prediction      2.58e-08
  gradient norms        3.44e-08
tests/golden/b.npz (fine-tuning): {}
  level 0               {}
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """``bench(printed, write)``: a bench whose commands print this, and do ``write(folder)``."""
    def make(printed: str = '', write=lambda folder: None) -> matrix.Bench:
        (tmp_path / '.venv').mkdir(exist_ok=True)
        (tmp_path / 'tests/golden').mkdir(parents=True, exist_ok=True)
        for name in 'ab':
            (tmp_path / f'tests/golden/{name}.npz').touch()
        made = matrix.Bench(tmp_path, tmp_path / 'log.txt')
        monkeypatch.setattr(made, 'run', lambda *args, **kwargs: write(tmp_path) or printed, raising=False)
        return made
    return make


def test_the_page_says_what_the_rows_say():
    assert not matrix.stale(), 'tools/matrix.py --write was not run since'


def test_a_changed_row_and_a_typed_number_are_found(tmp_path):
    page = tmp_path / 'docs' / 'install.md'
    (tmp_path / 'results').mkdir()
    page.parent.mkdir()
    page.write_text('<!-- matrix: environments -->\n<!-- /matrix -->\n')
    for failed in ('3', '0'):
        matrix.add_row(ROW | dict(failed=failed), tmp_path / 'results/matrix.csv')
        assert list(matrix.stale(tmp_path)) == [page]
        matrix.write(tmp_path)
        assert not matrix.stale(tmp_path)
    cells = [cell.strip() for cell in page.read_text().splitlines()[3].split('|')[1:-1]]
    expected = ROW | dict(torch='2.11.0', torchvision='0.26.0', mmengine='0.10.7', mmpretrain='1.2.0', mmdet='3.3.0')
    assert cells == [expected[column] for column in matrix.HEADS], 'only the newest row of an environment is shown'
    page.write_text(page.read_text().replace('| 10 |', '| 11 |'))
    assert list(matrix.stale(tmp_path)) == [page]


@pytest.mark.parametrize('printed, expected', [
    (PARITY.format('equal', ' 1.00e-09'), '3.4e-08'),
    (PARITY.format('NOT EQUAL', ' 1.00e-02  > 1e-06'), '1.0e-02'),
    (PARITY.format('NOT EQUAL', '      nan  > 1e-06'), 'nan'),
    (PARITY.split('tests/golden/b')[0], ''),
    ('Traceback\nImportError: no\n', ''),
])
def test_the_largest_error_is_read(bench, printed, expected):
    assert matrix.parity(bench(printed)) == expected


def test_the_ends_of_tests_are_counted(bench):
    def report(folder: Path) -> None:
        suite = ElementTree.Element('testsuite')
        for name, end in (('a', ''), ('b', 'failure'), ('c', 'error'), ('d', 'skipped'), ('e', '')):
            case = ElementTree.SubElement(suite, 'testcase', classname='tests.tools.test_x', name=name)
            if end:
                ElementTree.SubElement(case, end)
        ElementTree.ElementTree(suite).write(folder / '.venv/tests.xml')

    assert matrix.suite(bench(write=report), [], 1) == dict(
        passed='2', failed='2', skipped='1', reason='test_x: b; test_x: c')


def test_tests_that_do_not_end_are_told(bench):
    with pytest.raises(matrix.Failed, match='did not come to its end'):
        matrix.suite(bench(), [], 1)


@pytest.mark.parametrize('change, verdict', [
    ({}, 'passes'), (dict(failed='1'), 'some tests fail'), (dict(parity='1e-3'), 'other numbers'),
    (dict(parity='nan'), 'other numbers'), (dict(parity=''), 'other numbers'), (dict(passed=''), 'does not run'),
    (dict(passed='', torch=''), 'does not install'),
])
def test_verdicts(change, verdict):
    assert matrix.judge(ROW | change) == verdict


@pytest.mark.parametrize('name', [name for name, made in matrix.ENVIRONMENTS.items() if made.packages or made.newest])
def test_what_replaces_lines_of_the_lock(bench, monkeypatch, name):
    """The stack's packages are replaced, CUDA's go with torch, and all others are the lock's."""
    made, calls = bench(), []
    shutil.copy(REPOSITORY / 'requirements.lock', made.folder)
    monkeypatch.setattr(matrix.Bench, 'pip', lambda self, step, *arguments: calls.append((step, arguments)))
    matrix.install(made, matrix.ENVIRONMENTS[name], 'python')
    kept = (made.folder / '.venv/lock.txt').read_text().splitlines()
    left_out = {line.split('==')[0] for line in (made.folder / 'requirements.lock').read_text().splitlines()
                if line not in kept}
    if name == 'originals':
        assert left_out == {'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmengine', 'onedl-mmpretrain',
                            'onedl-mmsegmentation'}
        assert ('the packages', ('--no-deps', *matrix.ENVIRONMENTS[name].packages)) in calls
    else:
        assert {'torch', 'torchvision', 'triton', 'nvidia-cublas', 'cuda-bindings'} <= left_out
        assert not [name for name in left_out if not re.match('torch|triton|nvidia-|cuda-', name)]
        assert made.env['PIP_CONSTRAINT'] == '/dev/null'
    assert calls[-1] == ('bootmae', ('--no-deps', '--no-build-isolation', '-e', '.'))


def test_uncommitted_changes_go_along(tmp_path, monkeypatch):
    source = tmp_path / 'source'
    source.mkdir()

    def git(*arguments: str) -> None:
        subprocess.run(('git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments), cwd=source, check=True)

    git('init', '-q')
    for name in ('same', 'changed', 'gone', '.gitignore'):
        (source / name).write_text('ignored\n')
    git('add', '.')
    git('commit', '-q', '-m', 'first')
    (source / 'changed').write_text('new')
    (source / 'gone').unlink()
    (source / 'ignored').touch()
    (source / 'folder').mkdir()
    (source / 'folder/added').touch()
    monkeypatch.setattr(matrix, 'ROOT', source)
    matrix.clone(tmp_path / 'copy')
    copy = tmp_path / 'copy'
    there = {path.relative_to(copy).as_posix() for path in copy.rglob('*') if path.is_file()}
    assert {name for name in there if not name.startswith('.git/')} == {'same', 'changed', '.gitignore', 'folder/added'}
    assert (copy / 'changed').read_text() == 'new'


def test_a_python_that_is_not_there_is_named():
    version = '{}.{}'.format(*sys.version_info[:2])
    assert matrix.find_python(version, [sys.executable])
    with pytest.raises(matrix.Failed, match=r'no Python 3\.99 is found; name one: --python '):
        matrix.find_python('3.99', [sys.executable])


def test_a_failed_step_tells_its_last_line(tmp_path):
    made = matrix.Bench(tmp_path, tmp_path / 'log.txt')
    with pytest.raises(matrix.Failed, match='^venv: it is broken$'):
        made.run('venv', sys.executable, '-c', 'print("more"); raise SystemExit("it is broken")')
    assert 'more' in (tmp_path / 'log.txt').read_text()
