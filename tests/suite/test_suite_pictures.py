"""Reconstructions of a suite whose methods have options of their own, from files with random weights."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from test_spec import cells_of

from bootmae.config.model import build_model, model_config
from bootmae.models.masking import BlockMasking
from bootmae.suite import page
from bootmae.suite.cells import Cell
from bootmae.suite.collect import cell_config
from bootmae.visualization.reconstruct import hide, reconstruct

METHODS = {
    'deeper-1': {'configs': 'bootmae', 'options': {'model.pixel_decoder.depth': 2, 'model.masking.num_block': 0}},
    'bootmae': None,
    'mae-2': {'configs': 'mae'},
    'fewer': {'configs': 'bootmae', 'options': {'model.masking': {'num_masked': 40, 'num_block': 30}}},
}


def finished(cell: Cell) -> Cell:
    """A pretraining of which there is a file."""
    cfg = cell_config(cell)
    torch.manual_seed(len(cell.name))
    model = MODELS.build(model_config(cfg))
    model.init_weights()
    cell.run.mkdir(parents=True)
    torch.save(dict(state_dict=model.state_dict(), meta={}), cell.run / 'epoch_1.pth')
    (cell.run / 'last_checkpoint').write_text(str(cell.run / 'epoch_1.pth'))
    return cell


@pytest.mark.slow
def test_models_are_built_with_their_options(tmp_path, monkeypatch):
    """A decoder of two blocks is loaded as such, the masks are those of the method without options, and a method that
    masks another number of patches has no column."""
    cells, drawn = cells_of(tmp_path, methods=METHODS, seeds=[0])[:5], {}
    cells = [finished(cell) if cell.task is None else cell for cell in cells]
    monkeypatch.setattr(page, 'reconstruction_grid', lambda panels: drawn.update(panels) or b'picture')
    assert list(page.reconstructions(cells).values()) == [b'picture']
    assert list(drawn) == ['original', 'masked', 'deeper-1', 'bootmae', 'mae-2']
    cfg = cell_config(cells[1])
    masking, rng = BlockMasking(grid=(8, 8), **cfg.model.masking), np.random.RandomState(0)
    orders = np.stack([masking.draw_ids_shuffle(rng) for _ in drawn['original']])
    assert np.array_equal(drawn['masked'], hide(drawn['original'], orders, masking.num_masked, (4, 4)))
    for cell, name in zip(cells, ('deeper-1', 'bootmae', 'mae-2'), strict=False):
        model = build_model(cell_config(cell), cell.run / 'epoch_1.pth').eval()
        assert np.array_equal(drawn[name], reconstruct(model, drawn['original'], orders, masking.num_masked, (4, 4)))
    assert not np.array_equal(drawn['deeper-1'], drawn['bootmae'])


def test_commands_of_methods_with_options(tmp_path):
    found = page.commands(cells_of(tmp_path, methods=METHODS, seeds=[0]))
    assert [name for name in found if name.startswith('pretrain')] == [
        'pretrain, deeper-1',
        'pretrain',
        'pretrain, fewer',
    ]
    assert found['pretrain, fewer'].endswith(
        ' --cfg-options randomness.seed=0 model.masking.num_masked=40 model.masking.num_block=30'
    )
    assert 'bootmae_debug.py' in found['pretrain']


@pytest.mark.parametrize('pictures', [True, False])
def test_a_report_with_or_without_test_images(tmp_path, monkeypatch, pictures):
    parts = {}
    for name in ('reconstructions', 'predictions'):
        monkeypatch.setattr(page, name, lambda done: {'test images': b'picture'})
    monkeypatch.setattr(page, 'write_page', lambda path, **given: parts.update(given))
    page.write_report(cells_of(tmp_path, methods=METHODS, seeds=[0]), [], tmp_path / 'report.html', pictures)
    assert bool(parts['pictures']) == bool(parts['predictions']) == pictures
