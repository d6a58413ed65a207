"""Curves merged over resumed runs, picture grids pixel by pixel, and the SVG figures."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from bootmae.report import Curve, ResultRow, comparison_svg, loss_svg, read_curve, reconstruction_grid, summarize
from bootmae.report.figures import MAX_POINTS, difference_svg, series, thin
from bootmae.visualization.grids import GUTTER, HEADING, tile_origin


def write_run(work_dir, timestamp, points, resume=None, extra=()):
    """One run as mmengine leaves it: every line in scalars.json and again in <timestamp>.json."""
    folder = work_dir / timestamp / 'vis_data'
    folder.mkdir(parents=True)
    lines = [json.dumps({'lr': 0.1, 'loss': loss, 'iter': step, 'step': step}) for step, loss in points]
    text = '\n'.join([*lines, *extra]) + '\n'
    (folder / 'scalars.json').write_text(text)
    (folder / f'{timestamp}.json').write_text(text)
    if resume is not None:
        (folder / 'config.py').write_text(f'max_epochs = 3\nresume = {resume}\n')


def points_of(curve):
    return list(zip(curve.steps.tolist(), curve.values['loss'].tolist()))


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    write_run(tmp_path, '20260101_100000', [(10, 1.0), (20, 0.9), (30, 0.8)], resume=False)
    write_run(tmp_path, '20260101_110000', [(20, 0.5), (30, 0.4), (40, 0.3)], resume=True)
    curve = read_curve('digits/mae/0', tmp_path)
    assert points_of(curve) == [(10, 1.0), (20, 0.5), (30, 0.4), (40, 0.3)]
    assert curve.parts == ('digits', 'mae', '0')


def test_resumed_run_cuts_points_that_were_never_repeated(tmp_path):
    write_run(tmp_path, '20260101_100000', [(10, 1.0), (25, 0.9), (99, 0.8)])
    write_run(tmp_path, '20260101_110000', [(20, 0.5)])
    assert points_of(read_curve('mae', tmp_path)) == [(10, 1.0), (20, 0.5)]


def test_restart_forgets_the_older_run(tmp_path):
    write_run(tmp_path, '20260101_100000', [(10, 1.0), (20, 0.9)], resume=False)
    write_run(tmp_path, '20260101_110000', [(50, 0.5)], resume=False)
    assert points_of(read_curve('mae', tmp_path)) == [(50, 0.5)]


def test_lines_of_validation_tests_and_a_crash_are_left_out(tmp_path):
    extra = ['{"accuracy/top1": 50.0, "step": 1}', '{"loss": 0.']
    write_run(tmp_path, '20260101_100000', [(10, 1.0)], extra=extra)
    write_run(tmp_path, '20260101_110000', [], extra=['{"accuracy/top1": 60.0, "step": 1}'])
    assert points_of(read_curve('mae', tmp_path)) == [(10, 1.0)]
    assert read_curve('mae', tmp_path, having='accuracy/top1').values['accuracy/top1'].tolist() == [60.0]


def test_one_run_directory_and_missing_keys(tmp_path):
    extra = ['{"loss": NaN, "loss_pixel": 0.5, "step": 20}']
    write_run(tmp_path, '20260101_100000', [(10, 1.0)], extra=extra)
    curve = read_curve('bootmae', tmp_path / '20260101_100000')
    np.testing.assert_array_equal(curve.values['loss_pixel'], [np.nan, 0.5])
    np.testing.assert_array_equal(curve.values['loss'], [1.0, np.nan])
    assert curve.parts == ('', 'bootmae', '')


def test_older_layout_without_scalars_json(tmp_path):
    write_run(tmp_path, '20260101_100000', [(10, 1.0)])
    (tmp_path / '20260101_100000' / 'vis_data' / 'scalars.json').unlink()
    assert points_of(read_curve('mae', tmp_path)) == [(10, 1.0)]


def test_curve_errors_name_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no scalars.json with 'loss'"):
        read_curve('mae', tmp_path)
    write_run(tmp_path, '20260101_100000', [(10, 1.0)], extra=['rubbish', '{"loss": 1, "step": 20}'])
    with pytest.raises(ValueError, match=r'scalars.json, line 2: not a line of scalars'):
        read_curve('mae', tmp_path)


# ---- picture grid


def panels(n=3, height=5, width=7):
    generator = np.random.default_rng(0)
    return {
        name: generator.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
        for name in ('BootMAE', 'masked', 'MAE', 'original')
    }


def decode(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize('scale', [1, 3])
def test_grid_holds_the_pictures_in_order(scale):
    given = panels()
    grid = decode(reconstruction_grid(given, scale=scale))
    assert grid.shape == (HEADING + 3 * 5 * scale + 2 * GUTTER, 4 * 7 * scale + 3 * GUTTER, 4)
    for column, name in enumerate(['original', 'masked', 'MAE', 'BootMAE']):
        for row in range(3):
            top = HEADING + row * (5 * scale + GUTTER)
            left = column * (7 * scale + GUTTER)
            assert tile_origin(row, column, 5 * scale, 7 * scale) == (top, left)
            tile = grid[top : top + 5 * scale, left : left + 7 * scale]
            np.testing.assert_array_equal(tile[scale // 2 :: scale, scale // 2 :: scale, :3], given[name][row])
            assert (tile[..., 3] == 255).all()
            assert (tile[:, :1, :3] == tile[:, scale - 1 : scale, :3]).all()


def test_grid_gutters_are_transparent_and_headings_are_drawn():
    grid = decode(reconstruction_grid(panels(width=64, height=64)))
    assert grid.shape[1] == 4 * 128 + 3 * GUTTER
    assert (grid[HEADING:, 128 : 128 + GUTTER, 3] == 0).all()
    for column in range(4):
        left = column * (128 + GUTTER)
        assert (grid[:HEADING, left : left + 128, 3] > 200).any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'MAE': np.zeros((3, 5, 7, 3), np.float32)}, "panel 'MAE' is float32"),
        ({'MAE': np.zeros((2, 5, 7, 3), np.uint8)}, 'the same images in every panel'),
        ({'MAE': np.zeros((5, 7, 3), np.uint8)}, 'give uint8'),
    ],
)
def test_grid_refuses_other_arrays(change, message):
    with pytest.raises(ValueError, match=message):
        reconstruction_grid({**panels(), **change})
    with pytest.raises(ValueError, match='no panel'):
        reconstruction_grid({})


# ---- SVG


def curve_of(name, **values):
    return Curve(name, np.arange(1, 5), {key: np.array(value, dtype=float) for key, value in values.items()})


def test_series_are_the_parts_where_there_are_any():
    assert [key for key, _ in series(curve_of('d/mae', lr=[0] * 4, loss=[4, 3, 2, 1]))] == ['loss']
    bootmae = curve_of('d/bootmae', loss=[4, 3, 2, 1], loss_pixel=[1] * 4, loss_feature=[3, 2, 1, 0])
    assert [key for key, _ in series(bootmae)] == ['loss_pixel', 'loss_feature']


def test_thin_keeps_the_ends_and_drops_gaps():
    steps, values = np.arange(5000), np.arange(5000) / 2
    values[10] = np.nan
    kept_steps, kept = thin(steps, values)
    assert len(kept) == MAX_POINTS
    assert (kept_steps[0], kept_steps[-1], kept[-1]) == (0, 4999, 2499.5)
    assert np.isfinite(kept).all()
    np.testing.assert_array_equal(kept, kept_steps / 2)


def line_of(svg, color):
    """Points of the first line in a color, as (x, y) of the SVG."""
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--' + color, svg)[1]
    return np.array([[float(x) for x in point] for point in re.findall(r'([\d.]+) ([\d.]+)', path)])


def test_loss_line_follows_the_values():
    x, y = line_of(loss_svg([curve_of('d/mae/0', loss=[4, 3, 2, 0])]), 'mae').T
    np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), [0, 1 / 3, 2 / 3, 1], atol=1e-4)
    np.testing.assert_allclose((y - y[0]) / (y[-1] - y[0]), [0, 1 / 4, 2 / 4, 1], atol=1e-4)


def test_figures_are_safe_to_inline():
    name = '<script>$x_1$&"\'</script>'
    rows = [
        ResultRow(name, method, name, 'all', 'accuracy', 50.0 + seed * bonus, seed)
        for method, bonus in (('untrained', 1), ('mae', 2), ('bootmae', 3), (name, 4))
        for seed in (0, 1)
    ]
    figures = [
        loss_svg([curve_of(f'{name}/mae/0', loss=[3, 2, 1, 0], **{f'loss_{name}': [1, 2, 3, 4]})]),
        comparison_svg(summarize(rows)),
        difference_svg(summarize(rows)),
    ]
    every = []
    for svg in figures:
        assert svg.startswith('<svg ')
        for bad in ('<script', 'http', '<style', '<!', '<?', 'DejaVu'):
            assert bad not in svg
        ids = re.findall(r'\bid="([^"]*)"', svg)
        assert set(re.findall(r'href="#([^"]*)"', svg) + re.findall(r'url\(#([^)]*)\)', svg)) <= set(ids)
        every += ids
    assert len(every) == len(set(every))


def test_colors_come_from_the_page():
    rows = [
        ResultRow('d', method, 'knn', 'all', 'accuracy', 50.0 + seed, seed)
        for method in ('untrained', 'mae', 'bootmae')
        for seed in (0, 1)
    ]
    svg = comparison_svg(summarize(rows))
    for name in ('untrained', 'mae', 'bootmae', 'muted'):
        assert f'var(--{name}, #' in svg
    assert not re.search(r'(fill|stroke): #', svg)
