#!/usr/bin/env python3
"""Install the suite in throw-away environments, run the quick tests in each, and keep what came out.

    tools/matrix.py                                  # all environments, one after the other
    tools/matrix.py originals --folder /big/disk     # one of them
    tools/matrix.py --write                          # only writes the table of docs/install.md again

Each environment is a clone of this checkout, with uncommitted changes, and its own .venv of about 6 GB, which goes when
it is done. A row in results/matrix.csv says what was installed, how far the numbers are from those of the authors'
release (tools/parity.py), and how the tests ended. The table between `<!-- matrix: environments -->` and
`<!-- /matrix -->` shows the newest row of each environment; a test fails where it says something else.
"""

import argparse
import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import bootstrap

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / 'results' / 'matrix.csv'
STACK = dict(torch=('torch',), torchvision=('torchvision',), mmengine=('onedl-mmengine', 'mmengine'),
             mmcv=('onedl-mmcv', 'mmcv-lite', 'mmcv'), mmpretrain=('onedl-mmpretrain', 'mmpretrain'),
             mmdet=('onedl-mmdetection', 'mmdet'), mmseg=('onedl-mmsegmentation', 'mmsegmentation'))
COLUMNS = ('date', 'commit', 'environment', 'python', *STACK, 'parity', 'passed', 'failed', 'skipped', 'seconds',
           'verdict', 'reason')
# words of the table; the columns are those of the rows
HEADS = dict(environment='environment', python='Python', torch='torch', torchvision='torchvision', mmengine='mmengine',
             mmcv='mmcv', mmpretrain='mmpretrain', mmdet='mmdet', mmseg='mmseg', parity='largest error of parity',
             passed='passed', failed='failed', skipped='skipped', verdict='verdict', reason='why', date='date',
             commit='commit')
PARITY_LIMIT = 1e-6
CUDA = r'torch|torchvision|triton|nvidia-.*|cuda-.*'


@dataclass(frozen=True)
class Environment:
    """What is installed.

    Attributes:
        python: version of Python.
        without: names of packages of the lock that are left out, as a regular expression.
        packages: installed in their place, without what they depend on: the lock has that.
        newest: installed in their newest version, with what they depend on.
    """

    python: str
    without: str = ''
    packages: tuple[str, ...] = ()
    newest: tuple[str, ...] = ()


ENVIRONMENTS = {
    'lock, Python 3.10': Environment('3.10'),
    'lock, Python 3.11': Environment('3.11'),
    'lock, Python 3.12': Environment('3.12'),
    'newest torch': Environment('3.11', without=CUDA, newest=('torch', 'torchvision')),
    'originals': Environment('3.11', without='onedl-.*', packages=(
        'mmengine==0.10.7', 'mmcv-lite==2.1.0', 'mmpretrain==1.2.0', 'mmdet==3.3.0', 'mmsegmentation==1.2.2')),
}


class Failed(Exception):
    """A step that ended badly: its name and the last line it printed."""


@dataclass
class Bench:
    """A clone of the checkout with its own .venv, and the commands that run in it."""

    folder: Path
    log: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> str:
        return str(self.folder / '.venv/bin/python')

    def run(self, step: str, *command: str | Path, check: bool = True) -> str:
        """Output of a command, which also goes to the log; ``Failed`` where it ends badly and ``check`` is true."""
        unwanted = (*bootstrap.UNWANTED, 'PYTEST_ADDOPTS')
        env = {key: value for key, value in os.environ.items() if key not in unwanted} | self.env
        done = subprocess.run([str(part) for part in command], cwd=self.folder, env=env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
        with self.log.open('a') as log:
            log.write(f'\n$ {" ".join(map(str, command))}\n{done.stdout}')
        if check and done.returncode:
            raise Failed(f'{step}: {(done.stdout.strip().splitlines() or ["no output"])[-1][:200]}')
        return done.stdout

    def pip(self, step: str, *arguments: str) -> None:
        options = '-q', '--disable-pip-version-check', '--no-input'
        self.run(step, self.python, '-m', 'pip', 'install', *options, *arguments)


def find_python(version: str, named: list[str]) -> str:
    """Path of a Python of this version: one of those named, else what the usual names find."""
    for name in (*named, f'python{version}', sys.executable):
        found = bootstrap.probe(name)
        if found and '{}.{}'.format(*found[0]) == version:
            return found[1]
    raise Failed(f'no Python {version} is found; name one: --python /path/to/python{version}')


def clone(folder: Path) -> None:
    """The last commit with what differs from it in this checkout."""
    def git(*arguments: str | Path) -> list[str]:
        return subprocess.run(('git', '-C', ROOT, *arguments), check=True, capture_output=True,
                              text=True).stdout.split('\0')[:-1]
    git('clone', '-q', ROOT, folder)
    for name in git('ls-files', '-z', '--modified', '--others', '--exclude-standard'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def install(bench: Bench, environment: Environment, python: str) -> None:
    """Fills the clone's .venv: by tools/bootstrap.py where it is the lock, else by pip from the lock's other lines."""
    if not (environment.packages or environment.newest):
        bench.env['PYTHON'] = python
        bench.run('tools/bootstrap.py', python, 'tools/bootstrap.py')
        return
    lock, rest = bench.folder / 'requirements.lock', bench.folder / '.venv' / 'lock.txt'
    bench.run('venv', python, '-m', 'venv', bench.folder / '.venv')
    lines = lock.read_text().splitlines(keepends=True)
    rest.write_text(''.join(line for line in lines if not re.fullmatch(environment.without, line.split('==')[0])))
    bench.pip('pip itself', *bootstrap.locked_tools(bench.folder))
    bench.pip('the lock', '--no-deps', '--build-constraint', str(lock), '-r', str(rest))
    if environment.packages:
        bench.pip('the packages', '--no-deps', *environment.packages)
    if environment.newest:
        bench.env['PIP_CONSTRAINT'] = os.devnull  # the user's constraints would decide which is the newest
        bench.pip('the newest packages', '--upgrade', *environment.newest)
    bench.pip('bootmae', '--no-deps', '--no-build-isolation', '-e', '.')


def installed(bench: Bench) -> dict[str, str]:
    """Python's version, and name and version of each package of the stack."""
    code = ('import importlib.metadata as m, json, platform, re; print(json.dumps([platform.python_version(), '
            '{re.sub("[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in m.distributions()}]))')
    python, versions = json.loads(bench.run('versions', bench.python, '-c', code))
    found = dict(python=python)
    for column, names in STACK.items():
        name = next((name for name in names if name in versions), '')
        found[column] = f'{name} {versions[name]}' if name else ''
    return found


def parity(bench: Bench) -> str:
    """The largest relative error that tools/parity.py prints, '' where it does not run."""
    files = sorted(str(path) for path in (bench.folder / 'tests/golden').glob('*.npz'))
    printed = bench.run('parity', bench.python, 'tools/parity.py', *files, check=False)
    found = re.findall(r'^  .* (\d\.\d\de[-+]\d\d|nan|inf)(?:  >.*)?$', printed, re.MULTILINE)
    errors = [float(error) for error in found]
    whole = len(re.findall(r'^\S+ \([^()]+\): (?:NOT EQUAL|equal)$', printed, re.MULTILINE)) == len(files)
    return f'{max(errors, key=lambda error: (math.isnan(error), error)):.1e}' if errors and whole else ''


def suite(bench: Bench, tests: list[str], jobs: int) -> dict[str, str]:
    """How the quick tests end: how many passed, failed and were skipped, how long they took, which failed."""
    report = bench.folder / '.venv' / 'tests.xml'
    bench.run('tests', bench.python, '-m', 'pytest', '-m', 'not slow', '-p', 'no:cacheprovider', '-n', str(jobs),
              '--dist', 'loadfile', f'--junitxml={report}', *tests, check=False)
    if not report.is_file():
        raise Failed('pytest did not come to its end')
    cases = list(ElementTree.parse(report).getroot().iter('testcase'))
    bad = [case for case in cases if case.find('failure') is not None or case.find('error') is not None]
    skipped = [case for case in cases if case.find('skipped') is not None]
    names = sorted({f'{case.get("classname").rpartition(".")[2]}: {case.get("name")}' for case in bad})
    counts = dict(passed=len(cases) - len(bad) - len(skipped), failed=len(bad), skipped=len(skipped))
    return {key: str(value) for key, value in counts.items()} | dict(reason='; '.join(names)[:600])


def judge(row: dict[str, str]) -> str:
    """The verdict on an environment, from its row."""
    if not row.get('passed'):
        return 'does not install' if not row.get('torch') else 'does not run'
    if not row.get('parity') or not float(row['parity']) <= PARITY_LIMIT:
        return 'other numbers'
    return 'passes' if row['failed'] == '0' else 'some tests fail'


def try_environment(name: str, args: argparse.Namespace) -> dict[str, str]:
    """The row of one environment, from an empty folder on."""
    start = time.time()
    row = dict(date=time.strftime('%Y-%m-%d'), commit=commit(), environment=name)
    folder = Path(tempfile.mkdtemp(prefix='matrix-', dir=args.folder))
    bench = Bench(folder / 'bootmae', folder / 'log.txt', dict(OMP_NUM_THREADS='1'))
    print(f'{name}: in {folder}', flush=True)
    try:
        python = find_python(ENVIRONMENTS[name].python, args.python)
        clone(bench.folder)
        install(bench, ENVIRONMENTS[name], python)
        row |= installed(bench)
        row['parity'] = parity(bench)
        row |= suite(bench, args.tests, args.jobs)
    except Failed as failure:
        row['reason'] = str(failure)
    row |= dict(seconds=f'{time.time() - start:.0f}', verdict=judge(row))
    if not args.keep:
        shutil.rmtree(folder)
    return row


def commit() -> str:
    sys.path.insert(0, str(ROOT))
    from bootmae.results.provenance import git_commit
    return git_commit()


def read_rows(path: Path = ROWS) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def add_row(row: dict[str, str], path: Path = ROWS) -> None:
    """Appends a row; the file is written anew, whole."""
    rows = [*read_rows(path), row]
    with path.with_suffix('.tmp').open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n', restval='')
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix('.tmp').replace(path)


def table(rows: list[dict[str, str]]) -> str:
    """The newest row of each environment, in Markdown."""
    from pages.markers import markdown
    newest = {row['environment']: row for row in rows}
    order = [name for name in ENVIRONMENTS if name in newest] + [name for name in newest if name not in ENVIRONMENTS]
    return markdown(HEADS.values(), (
        [newest[name].get(column, '').removeprefix(f'{column} ') for column in HEADS] for name in order))


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Pages whose table is not that of the rows, and what they should say."""
    from pages import markers
    makers = dict(environments=lambda: table(read_rows(root / 'results' / 'matrix.csv')))
    return markers.stale(markers.pages(root), 'matrix', makers)


def write(root: Path = ROOT) -> None:
    for path, page in stale(root).items():
        path.write_text(page, encoding='utf-8')
        print(f'{path.relative_to(root)}: rewritten')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('environments', nargs='*', metavar='ENVIRONMENT',
                        help=f'any of {", ".join(map(repr, ENVIRONMENTS))} (default: all)')
    parser.add_argument('--folder', help='where the environments are made (default: the system\'s temporary folder)')
    parser.add_argument('--python', action='append', default=[], metavar='PATH',
                        help='a Python to use (default: python3.10 and the like); may be repeated')
    parser.add_argument('--tests', nargs='+', default=[], metavar='PATH', help='only these; no row is kept then')
    parser.add_argument('--jobs', type=int, default=2, help='test files side by side (default: 2)')
    parser.add_argument('--keep', action='store_true', help='leave the environments where they are')
    parser.add_argument('--write', action='store_true', help='only write the table again')
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if unknown := set(args.environments) - set(ENVIRONMENTS):
        parser.error(f'no environment {", ".join(sorted(unknown))}; there are {", ".join(ENVIRONMENTS)}')
    rows = [] if args.write else [try_environment(name, args) for name in args.environments or ENVIRONMENTS]
    for row in rows:
        print(', '.join(f'{key} {row[key]}' for key in COLUMNS if row.get(key)), flush=True)
        if not args.tests:
            add_row(row)
    if not args.tests:
        write()
    return 0 if all(row['verdict'] == 'passes' for row in rows) else 1


if __name__ == '__main__':
    sys.exit(main())
