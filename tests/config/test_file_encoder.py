"""The encoder of any file as a model: heads, windows and relative positions that the file shows or not."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from bootmae.checkpoints import FileEncoder, find_encoder
from bootmae.checkpoints.heads import heads_of
from bootmae.config.encoder import fit_encoder, statistics_of
from bootmae.transfer import TransferViT

SMALL = dict(arch=dict(embed_dims=24, depth=2, num_heads=4), img_size=32, patch_size=8)


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def found_in(model: torch.nn.Module) -> FileEncoder:
    """The encoder in a file with the weights of a backbone."""
    return find_encoder({f'backbone.{key}': value for key, value in model.state_dict().items()})


def test_layer_scale_and_relative_positions_of_a_file_count(randomize):
    theirs = randomize(TransferViT(**SMALL, layer_scale=1.0, relative_positions=True)).double().eval()
    model = fit_encoder(found_in(theirs), (32, 32)).double()  # the tables have the number of heads
    assert_close(model(images())[0], theirs(images())[0], rtol=1e-6, atol=1e-9)


def test_windows_that_are_not_known_are_refused(randomize):
    options = dict(window_size=2, global_blocks=[1])
    theirs = randomize(TransferViT(**SMALL, relative_positions=True, **options)).double().eval()
    found = found_in(theirs)
    model = fit_encoder(found, (32, 32), windows=options).double()
    assert_close(model(images())[0], theirs(images())[0], rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match='attends within windows, and the file does not record their size.*--config'):
        fit_encoder(found, (32, 32))
    with pytest.raises(ValueError, match=r'all blocks up to 0 attend within windows: choose --block from \[1\]'):
        fit_encoder(found, (32, 32), 0, windows=options)


def test_a_vitdet_shows_its_windows_and_heads(randomize):
    """Its tables are kept for the size of the training, whatever the size of the images is."""
    options = dict(class_token=False, relative_positions='decomposed', window_size=2, global_blocks=[1])
    theirs = randomize(TransferViT(**SMALL, **options, input_size=(48, 64))).double().eval()
    model = fit_encoder(found_in(theirs), (32, 32)).double()
    for size in ((32, 32), (48, 64), (56, 40)):
        assert_close(model(images(*size))[0], theirs(images(*size))[0], rtol=1e-6, atol=1e-9)
    assert (model.windowed, model.window_size, model.num_heads) == ([True, False], 2, 4)
    state = found_in(theirs)
    del state.state['blocks.0.attn.rel_pos_w']
    with pytest.raises(ValueError, match='blocks.0.attn.rel_pos_w. is missing: use another copy'):
        fit_encoder(state, (32, 32))


def encoder_of(width: int, depth: int, num_heads: int | None = None) -> FileEncoder:
    state = {'pos_embed': torch.zeros(1, 17, width), f'blocks.{depth - 1}.norm1.bias': torch.zeros(width)}
    return FileEncoder('test', state, num_heads=num_heads)


def test_heads():
    assert [heads_of(encoder_of(*size)) for size in ((192, 12), (768, 12), (1024, 24), (1280, 32), (512, 8))] == [
        3,
        12,
        16,
        16,
        8,
    ]
    assert heads_of(encoder_of(24, 3, 4)) == heads_of(encoder_of(24, 3), 4) == 4
    with pytest.raises(ValueError, match='a width of 24 is unusual: give --heads'):
        heads_of(encoder_of(24, 3))
    with pytest.raises(ValueError, match='--heads 3, but the file records 4 heads'):
        heads_of(encoder_of(24, 3, 4), 3)


def test_no_such_block(randomize):
    timm_vit = randomize(VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=4))
    for block in (3, -4):
        with pytest.raises(ValueError, match=rf'--block {block}: the encoder has the blocks 0 to 2'):
            fit_encoder(find_encoder(timm_vit.state_dict()), (32, 32), block, num_heads=4)


def test_statistics():
    encoder = encoder_of(24, 3)
    (mean, std), note = statistics_of(encoder)
    assert (mean, std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert note == "ImageNet's assumed (--statistics half for 0.5)"
    assert statistics_of(encoder, 'half') == (((127.5,) * 3,) * 2, '')
    with pytest.raises(ValueError, match="statistics 'none': use imagenet or half"):
        statistics_of(encoder, 'none')
