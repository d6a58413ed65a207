"""Ten methods, and features of several blocks, on one page."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from bootmae.report import Curve, ResultRow, build_page, summarize
from bootmae.report.blocks import block_plots
from bootmae.report.figures import OTHER_COLORS, loss_svg
from bootmae.report.overview import overview
from bootmae.report.summary import block_of, by_blocks, last_blocks
from bootmae.report.tables import comparison_table
from bootmae.visualization.grids import GUTTER, reconstruction_grid

TEN = (
    'untrained',
    'mae',
    'bootmae',
    'mae-longer',
    'no-momentum',
    'ema-0.9999',
    'random-masks',
    'wrong_taps',
    'no-weights',
    'mae (1600 epochs)',
)


def rows_of(methods=TEN, blocks=(1, 2, 12), seeds=(0, 1)) -> list[ResultRow]:
    """The method of rank r has 40 + r percent after the last block, less before, and half a point more for seed 1."""
    return [
        ResultRow(
            'CIFAR-10',
            method,
            'knn',
            'all',
            'accuracy',
            40.0 + rank + block / 4 - 3 + seed / 2,
            seed,
            f'k=20, block {block} of 12',
            checkpoint_hash=method,
        )
        for rank, method in enumerate(methods)
        for block in blocks
        for seed in seeds
    ]


def test_ten_methods_have_a_line_and_a_color_each():
    page = build_page('Title', rows_of())
    table = re.search(r'<table class="overview many">.*?</table>', page, re.S)[0]
    dots = re.findall(r'<i style="background: var\(--(\w+)(?:, (#\w+))?\)"></i>([^<]*)', table)
    assert [name for _, _, name in dots] == ['Untrained', 'MAE', 'BootMAE', *TEN[3:-1], 'MAE (1600 epochs)']
    assert len({variable for variable, _, _ in dots}) == 10
    style = page[page.index('<style') : page.index('</style>')]
    for variable, color, _ in dots:
        assert f'--{variable}:' in style or color in OTHER_COLORS, 'a dot without a color would not be seen'
    assert len(re.findall('<tr class="difference">', table)) == 8
    for method in ('mae-longer', 'ema-0.9999'):
        assert f'{method} − MAE' in page


def luminance(color: str) -> float:
    parts = [value / 255 for value in ImageColor.getrgb(color)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize('color', OTHER_COLORS[4:])
def test_colors_without_a_dark_twin_are_readable_on_both(color):
    """Contrast of at least 3 to 1, as WCAG asks of graphics, on the page's light and dark paper."""
    for paper in ('#ffffff', '#15171a'):
        low, high = sorted(luminance(value) + 0.05 for value in (color, paper))
        assert high / low > 3


def test_names_alike_have_ids_of_their_own(curve_of):
    """Else a figure would take the clipping of another."""
    names = ('mae (long)', 'mae-long', 'mae.long')
    ids = [set(re.findall(r'\bid="([^"]*)"', loss_svg([curve_of(f'/{name}/0')]))) for name in names]
    assert all(ids)
    assert not set.intersection(*ids)
    assert all(re.fullmatch(r'[a-z][\w.-]*', name) for found in ids for name in found)


@pytest.fixture
def curve_of():
    return lambda name: Curve(name, np.arange(1, 4), {'loss': np.array([3.0, 2.0, 1.0])})


def test_the_last_block_stands_for_all():
    rows = rows_of(TEN[:3]) + [
        replace(row, task='linear', protocol='logistic regression, block 9 of 12')
        for row in rows_of(TEN[:3], blocks=(9,))
    ]
    comparisons = summarize(rows)
    assert [[block_of(item) for item in group] for group in by_blocks(comparisons[::-1])] == [[9], [1, 2, 12]]
    kept = last_blocks(comparisons)
    assert [(item.task, item.protocol.rpartition('block ')[2]) for item in kept] == [
        ('knn', '12 of 12'),
        ('linear', '9 of 12'),
    ]
    table = overview(comparisons)
    assert table.columns[0] == ('CIFAR-10', 'k-NN', 'all labels, k=20, block 12 of 12')
    assert table.rows[1][1][0].text == '41.2 ± 0.4 (2)'
    page = build_page('Title', rows)
    assert 'BootMAE is above MAE in all 2 comparisons.' in page
    assert [[cell.text for cell in row[1:4]] for row in comparison_table(comparisons).rows] == [
        ['k-NN', 'all', '1'],
        ['k-NN', 'all', '2'],
        ['k-NN', 'all', '12'],
        ['logistic regression', 'all', '9'],
    ]
    assert ('Block', True) not in comparison_table(kept).columns
    assert '>k=20, block 1 of 12<' in page
    assert 'By block: ' in page
    assert 'By block: ' not in build_page('Title', rows_of(blocks=(12,)))
    assert last_blocks(summarize(rows_of(blocks=(12,))))


def test_a_line_over_blocks():
    ((heading, svg),) = block_plots(summarize(rows_of(TEN[1:3])))
    assert heading == 'CIFAR-10, k-NN, all labels, by block'
    line = next(
        match[1] for match in re.finditer(r'<path d="([^"]*)"[^>]*stroke: var\(--mae,', svg) if match[1].count('L') == 2
    )
    (x0, y0), (x1, y1), (x2, y2) = (
        [float(value) for value in point] for point in re.findall(r'([\d.]+) ([\d.]+)', line)
    )
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 11, abs=1e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(1 / 11, abs=1e-3)
    assert y2 < y0, 'upwards'
    assert block_plots(summarize(rows_of(blocks=(12,)))) == []


def test_twelve_columns_of_pictures():
    panels = {
        name: np.full((2, 32, 32, 3), 10 * rank, np.uint8) for rank, name in enumerate(('original', 'masked', *TEN))
    }
    grid = np.asarray(Image.open(io.BytesIO(reconstruction_grid(panels, scale=4))))
    middles = [GUTTER * column + 128 * column + 64 for column in range(12)]
    order = ['original', 'masked', *TEN]
    assert grid[-64, middles, 0].tolist() == [int(panels[name][0, 0, 0, 0]) for name in order]
