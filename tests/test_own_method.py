"""A method of one's own in one file and a config: examples/simmim.py."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS

from bootmae.checkpoints import find_encoder, read_checkpoint
from bootmae.commands.train import train
from bootmae.config.load import load_config
from bootmae.config.weights import apply_init
from bootmae.results.provenance import REPOSITORY
from bootmae.suite.cells import make_cells
from bootmae.suite.spec import load_suite
from examples.simmim import PlainSimMIM, draw_masks, masked_l1

CONFIG = str(REPOSITORY / 'examples' / 'simmim_debug.py')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Losses of ten steps, the trained model and its file."""
    folder = tmp_path_factory.mktemp('simmim')
    runner = train(CONFIG, str(folder), {'log_level': 'ERROR', 'randomness.seed': 3})
    history = runner.message_hub.get_scalar('train/loss').data[0]
    return np.array(history), runner.model, folder / 'epoch_2.pth'


def test_masks_are_squares_of_the_same_number():
    torch.manual_seed(0)
    mask = draw_masks(64, (6, 4), 2, 0.5, torch.device('cpu'))
    assert mask.shape == (64, 24)
    squares = mask.view(64, 3, 2, 2, 2).transpose(2, 3).flatten(3)  # rows and columns of squares, patches of each
    assert (squares.all(-1) == squares.any(-1)).all()
    assert (squares.all(-1).flatten(1).sum(1) == 3).all()
    assert squares.all(-1).float().mean(0).sub(0.5).abs().max() < 0.25  # none is always or never masked
    with pytest.raises(ValueError, match='mask_unit=4 does not divide a grid of'):
        draw_masks(1, (6, 4), 4, 0.5, torch.device('cpu'))


def test_the_loss_is_that_of_the_masked_pixels():
    generator = torch.Generator().manual_seed(0)
    prediction, patches = torch.randn(2, 2, 3, 4, generator=generator)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    by_hand = torch.cat((prediction[0, :1], prediction[1, :2])) - torch.cat((patches[0, :1], patches[1, :2]))
    torch.testing.assert_close(masked_l1(prediction, patches, mask), by_hand.abs().sum() / (3 * 4))


def test_the_encoder_does_not_see_what_is_masked():
    torch.manual_seed(0)
    model = PlainSimMIM(
        dict(type='PlainViT', arch=dict(embed_dims=8, depth=1, num_heads=2), img_size=(8, 16), patch_size=4)
    )
    model.init_weights()
    images, mask = torch.randn(1, 3, 8, 16), torch.zeros(1, 8, dtype=torch.bool)
    mask[0, :4] = True  # the upper half
    other = images.clone()
    other[:, :, :4] += 1
    before, after = model.predict(images, mask), model.predict(other, mask)
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(after[1][0, :4], before[1][0, :4] + 1)
    other[:, :, 4:] += 1
    assert not torch.equal(before[0], model.predict(other, mask)[0])


@pytest.mark.slow
def test_it_trains_and_its_encoder_is_taken(trained):
    losses, model, path = trained
    assert len(losses) == 10
    assert losses[-2:].mean() < 0.9 * losses[:2].mean()
    cfg = load_config(str(REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'))
    apply_init(cfg, str(path))
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    assert sorted(backbone.load_report.unused) == ['norm.bias', 'norm.weight']
    assert backbone.load_report.loaded == len(find_encoder(read_checkpoint(path)).state) - 2
    for name, weight in backbone.state_dict().items():
        if not name.startswith('fc_norm'):
            torch.testing.assert_close(weight, model.state_dict()[f'backbone.{name}'], rtol=0, atol=0)
    assert not torch.equal(model.mask_token, torch.zeros(48))


def test_a_method_with_a_target_encoder():
    """An encoder below ``backbone.`` and its average below ``momentum.``, as data2vec would have: either is taken."""
    torch.manual_seed(0)
    vit = dict(type='PlainViT', arch=dict(embed_dims=8, depth=1, num_heads=2), img_size=8, patch_size=4)
    backbone, momentum = (MODELS.build(vit).state_dict() for _ in range(2))
    state = (
        {f'backbone.{key}': value for key, value in backbone.items()}
        | {f'momentum.{key}': value for key, value in momentum.items()}
        | {'predictor.weight': torch.zeros(8, 8)}
    )
    facts = dict(mean=[1.0] * 3, std=[2.0] * 3, img_size=[8, 8], num_heads=2)
    for source, weights in (('online', backbone), ('momentum', momentum)):
        encoder = find_encoder(dict(state_dict=state, meta=dict(bootmae=facts)), source)
        assert encoder.kind == f'run of this suite ({source})'
        assert encoder.mean == (1.0, 1.0, 1.0)
        assert encoder.state.keys() == weights.keys()
        assert all(torch.equal(encoder.state[key], weights[key]) for key in weights)
    assert find_encoder(dict(state_dict=state)).mean is None  # not BootMAE's, where the file does not tell


def test_its_suite_finds_the_configs():
    cells = {cell.name: cell.config for cell in make_cells(load_suite(REPOSITORY / 'examples/simmim.yaml'), REPOSITORY)}
    assert cells['pretrain/simmim-0'] == 'examples/simmim_debug.py'
    assert cells['pretrain/bootmae-0'] == 'configs/pretrain/bootmae_debug.py'
    assert cells['frozen/simmim-0'] == 'configs/cls/bootmae_debug_finetune.py'
