"""Shared fixtures: golden files, and tiny models with all weights random."""

import hide_gpu  # noqa: F401  isort: skip  before torch
import gc
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

import bootmae.registry  # noqa: F401  registers the models

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools'))  # for tools/pages

GOLDEN = Path(__file__).parent / 'golden'
VIT = dict(type='PlainViT', arch=dict(embed_dims=24, depth=3, num_heads=4), img_size=32, patch_size=8)  # 4 x 4 patches
MASKING = dict(num_masked=11, num_block=8, block_area=(2, 4))


def pytest_collection_modifyitems(items):
    """Run the files with slow tests first, so that no process waits for the last file of another one."""
    slow = {item.path for item in items if 'slow' in item.keywords}
    items.sort(key=lambda item: item.path not in slow)


def set_registry_scopes(scopes: dict) -> None:
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.fixture(scope='session', autouse=True)
def first_scopes() -> dict:
    """Registry scopes before any fixture of a folder has run."""
    return DefaultScope._instance_dict.copy()


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    """Use one thread: more are slower for tiny tensors, and the order of sums would depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='session', autouse=True)
def brief_workers():
    """Let a data loader that an exception left to the garbage collector wait 0.5 s for its workers, not 5 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 0.5)
        yield


@pytest.fixture(scope='module', autouse=True)
def light_collections():
    """Make garbage collection cheap: mmengine collects for each data set, which takes 0.2 s with torch imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope='module', autouse=True)
def module_registry_scope(first_scopes):
    """Restore the registry scope after the fixtures of a module, also after those of the session that it ran first."""
    yield
    set_registry_scopes(first_scopes)


@pytest.fixture(autouse=True)
def open_logs():
    """Let loggers of earlier tests write to an open stream: pytest has closed the output of those tests."""
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stderr


@pytest.fixture(autouse=True)
def fixed_seed():
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def registry_scope():
    """Restore the registry scope after each test, since a run changes it."""
    before = DefaultScope._instance_dict.copy()
    yield
    set_registry_scopes(before)


@pytest.fixture(scope='session')
def golden() -> Path:
    return GOLDEN


def randomize_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Randomize all weights except fixed positions, so that no initial zero or one hides an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith('pos_embed'):
                shift = float('norm' in name and name.endswith('weight'))
                parameter.copy_(shift + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def randomize():
    return randomize_weights


@pytest.fixture
def make_vit():
    """``make_vit(**changes)``: a tiny PlainViT in float64, eval mode, all weights random."""

    def make(**changes) -> torch.nn.Module:
        return randomize_weights(MODELS.build(VIT | changes)).double().eval()

    return make


@pytest.fixture
def make_bootmae():
    """``make_bootmae(backbone={...}, **changes)``: a tiny BootMAE in float64, training mode, all weights random.

    Its taps are blocks 1 and 2, and its pixel decoder has 3 heads of width 5 in a width of 16.
    """

    def make(backbone: dict | None = None, seed: int = 0, **changes) -> torch.nn.Module:
        cfg = dict(
            type='BootMAE',
            backbone=VIT | (backbone or {}),
            masking=MASKING,
            pixel_decoder=dict(embed_dims=16, num_heads=3, tap=1),
        )
        return randomize_weights(MODELS.build(cfg | changes), seed).double().train()

    return make


@pytest.fixture
def draw_ids_shuffle():
    """``draw_ids_shuffle(model, batch_size, seed)``: (B, N) patch orders as a tensor."""

    def draw(model: torch.nn.Module, batch_size: int = 2, seed: int = 0) -> torch.Tensor:
        rng = np.random.RandomState(seed)
        return torch.from_numpy(np.stack([model.masking.draw_ids_shuffle(rng) for _ in range(batch_size)]))

    return draw
