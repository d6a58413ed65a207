"""benchmarks/tables.py: the tables of README and docs say what the rows say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))

import measure
import tables

STEP = dict(
    date='2026-11-24 10:00',
    commit='abc',
    device='NVIDIA H100',
    threads=8,
    method='BootMAE',
    arch='base',
    img_size=224,
    batch=256,
    precision='bf16',
    compile=True,
    route='loop',
    images_per_s=3384.4,
    ms_per_step=75.64,
    peak_gib=12.44,
    peak_share=0.432,
    overhead_percent=1.26,
)
CPU = STEP | dict(
    device='AMD EPYC, 2 cores',
    threads=1,
    precision='float32',
    compile=False,
    images_per_s=4.567,
    ms_per_step=218.9,
    overhead_percent=None,
)


@pytest.fixture
def rows(tmp_path):
    for row in (STEP, CPU, STEP | dict(date='2026-11-25 09:00', images_per_s=3600.0)):
        measure.add_row('step', row, tmp_path)
    return tmp_path


def test_the_pages_say_what_the_rows_say():
    wrong = tables.stale(tables.pages())
    assert not wrong, f'benchmarks/tables.py --write was not run since: {", ".join(path.name for path in wrong)}'


def test_the_newest_row_of_each_measurement_is_shown(rows):
    lines = tables.render(tables.TABLES['step'], measure.read_rows('step', rows)).splitlines()
    assert lines[0].startswith('| model | pixels | batch | precision | compiled | route | images/s | ms a step |')
    assert lines[2:] == [
        '| BootMAE base | 224 | 256 | bf16 | yes | loop | 3,600 | 75.6 | 12.4 | 43 % | 1.3 % | '
        'NVIDIA H100 | 2026-11-25 |',
        '| BootMAE base | 224 | 256 | float32 |  | loop | 4.57 | 219 | 12.4 | 43 % |  | '
        'AMD EPYC, 2 cores, 1 thread | 2026-11-24 |',
    ]


def test_a_page_is_filled_between_its_markers(rows):
    page = 'Before.\n\n<!-- speed: step -->\nold\n<!-- /speed -->\n\n<!-- speed: reading -->\n<!-- /speed -->\nAfter.\n'
    filled = tables.filled(page, 'README.md', rows)
    table = tables.render(tables.TABLES['step'], measure.read_rows('step', rows))
    assert filled == (
        f'Before.\n\n<!-- speed: step -->\n{table}<!-- /speed -->\n\n<!-- speed: reading -->\n'
        '*Not measured.*\n<!-- /speed -->\nAfter.\n'
    )
    assert tables.filled(filled, 'README.md', rows) == filled


def test_a_page_that_is_behind_is_found(rows, tmp_path):
    page = tmp_path / 'README.md'
    page.write_text(tables.filled('<!-- speed: step -->\n<!-- /speed -->\n', 'README.md', rows))
    assert tables.stale([page], rows) == {}
    measure.add_row('step', STEP | dict(date='2026-11-26 09:00', images_per_s=4200.0), rows)
    assert '| 4,200 |' in tables.stale([page], rows)[page]


@pytest.mark.parametrize(
    ('page', 'message'),
    [
        ('<!-- speed: stepp -->\n<!-- /speed -->\n', r"docs.md: no table 'stepp' .*; there are step, reading"),
        ('<!-- speed: step -->\n\nText.\n', 'docs.md: a table is not closed'),
        ('<!-- speed: step -->\n<!-- speed: reading -->\n<!-- /speed -->\n', 'docs.md: .*is not closed'),
    ],
)
def test_wrong_markers_are_named(page, message, rows):
    with pytest.raises(ValueError, match=message):
        tables.filled(page, 'docs.md', rows)


def test_what_no_row_has_is_left_out(rows):
    measure.add_row(
        'downstream',
        dict(
            date='2026-11-24 10:00',
            device='NVIDIA H100',
            task='seg',
            batch=2,
            precision_ours='bf16 autocast',
            precision_stock='float32',
            images_per_s_ours=30.0,
            images_per_s_stock=12.0,
            ratio=2.5,
        ),
        rows,
    )
    rendered = tables.render(tables.TABLES['downstream'], measure.read_rows('downstream', rows))
    assert rendered == (
        '| task | batch | precision, ours / stock | images/s, ours / stock | speed over stock | device | date |\n'
        '| --- | --- | --- | --- | --- | --- | --- |\n'
        '| seg | 2 | bf16 autocast / float32 | 30.0 / 12.0 | 2.50 x | NVIDIA H100 | 2026-11-24 |\n'
    )
