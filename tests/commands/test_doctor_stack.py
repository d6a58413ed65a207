"""The doctor calls no stack broken on which the quick tests passed."""
import csv
import platform
import shutil
from pathlib import Path

import pytest

from bootmae.commands import doctor
from bootmae.commands.doctor import FAULT, NOTE, OK, Context, run_check

REPOSITORY = Path(__file__).resolve().parents[2]
ORIGINALS = dict(mmengine='mmengine 0.10.7', mmcv='mmcv-lite 2.1.0', mmpretrain='mmpretrain 1.2.0', mmdet='mmdet 3.3.0',
                 mmseg='mmsegmentation 1.2.2')
ONEDL = dict(mmengine='onedl-mmengine 0.10.12', mmcv='onedl-mmcv 2.3.6', mmpretrain='onedl-mmpretrain 1.3.6',
             mmdet='onedl-mmdetection 3.5.1', mmseg='onedl-mmsegmentation 1.4.2')
TORCH = dict(torch='torch 2.11.0', torchvision='torchvision 0.26.0')
NEWER = dict(torch='torch 2.15.0+cu132', torchvision='torchvision 0.29.2')
ROW = dict(date='2026-11-24', python=platform.python_version().rpartition('.')[0] + '.99', verdict='passes')


@pytest.fixture
def look(tmp_path):
    """``look(rows, change)``: findings about the lock's packages but for ``change``, with these rows."""
    for name in ('requirements.lock', 'pyproject.toml'):
        shutil.copy(REPOSITORY / name, tmp_path)

    def look(rows: list[dict[str, str]], change: dict[str, str | None]) -> list[doctor.Finding]:
        (tmp_path / 'results').mkdir()
        with (tmp_path / 'results/matrix.csv').open('w', newline='') as file:
            writer = csv.DictWriter(file, [*ROW, *TORCH, *ONEDL], restval='')
            writer.writeheader()
            writer.writerows(rows)
        installed = doctor.read_lock(tmp_path)[0] | change
        installed = {name: version for name, version in installed.items() if version}
        return run_check(doctor.check_packages, Context(root=tmp_path, installed=installed))
    return look


def other(cells: dict[str, str], instead_of: dict[str, str]) -> dict[str, str | None]:
    """Change of the installed packages: these are there and those are not."""
    return {cell.split()[0]: None for cell in instead_of.values()} | dict(cell.split() for cell in cells.values())


ROWS = [ROW | TORCH | ONEDL, ROW | TORCH | ORIGINALS, ROW | NEWER | ONEDL | dict(date='2026-11-25')]


@pytest.mark.parametrize('change, value', [
    (other(ORIGINALS, ONEDL), 'tested on 2026-11-24: torch 2.11.0, torchvision 0.26.0, mmengine 0.10.7, mmcv-lite'),
    (other(NEWER, TORCH), 'tested on 2026-11-25: torch 2.15.0'),
    (other(NEWER, TORCH) | {'torch': '2.15.0+cpu', 'nvidia-cublas': '13.4.1.3'}, 'tested on 2026-11-25: torch 2.15.0'),
])
def test_a_tested_stack_is_a_note(look, change, value):
    (finding,) = look(ROWS, change)
    assert (finding.level, finding.name, finding.remedy) == (NOTE, 'packages', '')
    assert finding.value.startswith('not the locked versions, ' + value)


def test_the_lock_is_fine(look):
    assert [finding.level for finding in look(ROWS, {})] == [OK]


def test_the_other_packages_are_looked_at(look):
    found = look(ROWS, other(ORIGINALS, ONEDL) | dict(numpy='1.26.4', timm=None))
    assert [(finding.level, finding.name) for finding in found] == [
        (NOTE, 'packages'), (FAULT, 'numpy'), (FAULT, 'packages')]


@pytest.mark.parametrize('rows', [
    [], ROWS[:1],
    [ROW | TORCH | ORIGINALS | dict(verdict='some tests fail')],
    [ROW | TORCH | ORIGINALS | dict(python='3.9.1')],
    [ROW | TORCH | ORIGINALS | dict(mmdet='mmdet 3.2.0')],
    [ROW | TORCH | ORIGINALS | dict(mmdet='')],
])
def test_a_stack_that_was_not_tested_is_a_fault(look, rows):
    found = look(rows, other(ORIGINALS, ONEDL))
    assert [finding.level for finding in found] == [FAULT]
    assert found[0].value.startswith('not installed: onedl-mmcv, onedl-mmdetection')


def test_two_stacks_at_once_are_a_fault():
    have = dict(cell.split() for cell in (ONEDL | TORCH).values()) | {'mmcv-lite': '2.1.0'}
    assert [finding.level for finding in doctor.check_combinations(Context(installed=have))] == [FAULT]
