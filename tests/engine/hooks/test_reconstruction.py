"""The parts of the reconstruction pictures; test_watched_runs.py has whole ones."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.visualization import LocalVisBackend, MLflowVisBackend
from mmpretrain.registry import MODELS
from PIL import Image
from torch import nn

from bootmae.config.load import load_config
from bootmae.engine.hooks.reconstruction import ReconstructionHook, masks_of, on_white, patch_of

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'


def build(name: str):
    return MODELS.build(load_config(CONFIGS / 'pretrain' / f'{name}.py').model)


def test_masks_are_those_of_the_images():
    model = build('bootmae_debug')
    given = [SimpleNamespace(ids_shuffle=np.roll(np.arange(64), k)) for k in range(3)]

    class Sample(SimpleNamespace):
        def __contains__(self, key):
            return key in self.__dict__

    ids_shuffle, masked = masks_of(model, [Sample(**vars(sample)) for sample in given], 3)
    np.testing.assert_array_equal(ids_shuffle, np.stack([sample.ids_shuffle for sample in given]))
    assert masked == 48


@pytest.mark.parametrize('name', ['bootmae_debug', 'mae_debug'])
def test_masks_are_the_same_each_time(name):
    """They mask the model's number of patches."""
    model = build(name)
    (ids_shuffle, masked), (again, _) = masks_of(model, None, 3), masks_of(model, None, 3)
    np.testing.assert_array_equal(ids_shuffle, again)
    np.testing.assert_array_equal(np.sort(ids_shuffle, axis=1), np.tile(np.arange(64), (3, 1)))
    assert (ids_shuffle[0] != ids_shuffle[1]).any()
    assert masked == 48
    assert patch_of(model.backbone) == (4, 4)


def test_on_white():
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[0] = (10, 20, 30, 255)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'PNG')
    np.testing.assert_array_equal(on_white(buffer.getvalue()), [[[10, 20, 30]] * 2, [[255] * 3] * 2])


def test_every_backend_gets_a_name_it_can_use(monkeypatch):
    """mlflow takes a file name with a suffix and no step."""
    seen = []
    backends = {}
    for kind in (LocalVisBackend, MLflowVisBackend):
        backends[kind] = kind.__new__(kind)
        monkeypatch.setattr(kind, 'add_image', lambda self, name, image, step: seen.append((name, step)))
    hook = ReconstructionHook()
    monkeypatch.setattr(hook, 'picture', lambda model: np.zeros((2, 2, 3), np.uint8))
    hook.draw(SimpleNamespace(visualizer=SimpleNamespace(_vis_backends=backends), model=nn.Linear(1, 1)), 4)
    assert seen == [('reconstructions', 4), ('reconstructions/epoch_4.png', 4)]


def test_refusals():
    with pytest.raises(ValueError, match='ReconstructionHook: Linear predicts no patches'):
        ReconstructionHook().before_train(SimpleNamespace(model=nn.Linear(1, 1)))
    with pytest.raises(ValueError, match='interval=0, count=6: give numbers of at least 1'):
        ReconstructionHook(interval=0)
    with pytest.raises(ValueError, match='count=0'):
        ReconstructionHook(count=0)
