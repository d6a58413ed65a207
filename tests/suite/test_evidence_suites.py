"""The suites of docs/evidence.md: same settings in all of them, and methods that are what their names say."""

from dataclasses import replace

import pytest
import yaml
from torch import nn

from bootmae.config.load import load_config
from bootmae.config.model import build_model
from bootmae.models import BlockMaskedMAEViT, BootMAE, PerChannelMAEHead
from bootmae.results.provenance import REPOSITORY
from bootmae.suite.cells import Cell, make_cells
from bootmae.suite.spec import load_suite


def content(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / 'suites' / f'{name}.yaml').read_text())


def pretrainings(name: str) -> dict[str, Cell]:
    """First pretraining of each method of a suite."""
    suite = load_suite(REPOSITORY / 'suites' / f'{name}.yaml')
    return {cell.method.name: cell for cell in make_cells(suite, REPOSITORY) if not cell.task and cell.seed == 0}


def model_of(cell: Cell) -> nn.Module:
    return build_model(load_config(cell.config, cell.options))


def test_all_suites_have_the_settings_of_the_run():
    run, why, depth = (content(name)['methods'] for name in ('evidence', 'evidence_why', 'evidence_depth'))
    for method in ('mae', 'bootmae'):
        options = run[method]['options']
        assert why[method]['options'] == options
        assert depth[method]['options'].items() >= options.items()
        for name, entry in why.items():
            if name != method and entry.get('configs') == method:
                changed = {key for key in entry['options'] if entry['options'][key] != options.get(key)}
                assert changed
                assert all(key in changed or entry['options'].get(key) == value for key, value in options.items())
    longer = run['mae-equal-time']['options']
    assert {key: longer[key] for key in longer if key != 'train_cfg.max_epochs'} == run['mae']['options']
    tasks = content('evidence')['tasks']
    assert content('evidence_epochs')['tasks'].items() <= tasks.items()
    assert content('evidence_why')['tasks'].items() <= tasks.items()


@pytest.fixture(scope='module')
def models():
    return {name: model_of(cell) for name, cell in pretrainings('evidence_why').items()}


def test_one_change_at_a_time(models):
    mae, boot = models['mae'], models['bootmae']
    assert type(models['mae-per-channel'].head) is PerChannelMAEHead is not type(mae.head)
    assert (boot.target_groups, models['bootmae-all-channels'].target_groups) == (3, 1)
    assert type(models['mae-block-masks'].backbone) is BlockMaskedMAEViT
    assert models['mae-block-masks'].backbone.masking.num_masked == 64 - int(64 * (1 - mae.backbone.mask_ratio))
    assert models['mae-block-masks'].backbone.masking == replace(boot.masking, num_masked=48, num_block=39)
    assert models['bootmae-random-masks'].masking == replace(boot.masking, num_block=0)
    assert (boot.taps, models['bootmae-last-block'].taps) == ((0, 11), (11, 11))
    assert (boot.pixel_weight, models['bootmae-features-only'].pixel_weight) == (1, 0)
    pixels = pretrainings('evidence_why')['bootmae-pixels-only']
    assert load_config(pixels.config, pixels.options).custom_hooks[0].peak == 0


def test_depth_at_equal_parameters(models):
    def size(model: nn.Module) -> int:
        return sum(weight.numel() for weight in model.backbone.parameters() if weight.requires_grad)

    for name, cell in pretrainings('evidence_depth').items():
        shallow = model_of(cell)
        assert size(shallow) == pytest.approx(size(models[name]), rel=0.02)
        assert len(shallow.backbone.blocks if isinstance(shallow, BootMAE) else shallow.backbone.layers) == 4
