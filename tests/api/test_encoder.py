"""Encoders from Python: the features of tools/knn.py for images of every kind, dense features, k-NN, and errors."""

import copy
import shutil
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

import bootmae
from bootmae.api.encoder import image_set
from bootmae.commands.knn import evaluate_features
from bootmae.config.load import find_config, load_config
from bootmae.data.embedded import DigitImages
from bootmae.evaluation.probe import build_encoder, extract_blocks


@pytest.fixture(scope='module')
def labeled(home) -> Path:
    return home / 'labeled'


def knn_features(config: str, checkpoint: Path, options: dict | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of the test images of a config, as tools/knn.py extracts them."""
    cfg = load_config(config, options)
    model = build_encoder(cfg, str(checkpoint))
    pipeline = cfg.test_dataloader.dataset.pipeline
    return extract_blocks(model, cfg.test_dataloader, pipeline, [model.backbone.depth])[0]


# ---- the features of tools/knn.py


def test_features_and_accuracy_are_those_of_the_knn_tool(labeled, api_checkpoint):
    path, config = api_checkpoint('bootmae_small_data_cpu'), 'bootmae_small_data_cpu_finetune'
    options = {'images': [str(labeled / 'train'), str(labeled / 'val')]}
    encoder = bootmae.load_encoder(path)
    features, labels = knn_features(config, path, options)
    assert_close(bootmae.extract_features(encoder, labeled / 'val'), features, rtol=0, atol=2e-6)
    assert labels.tolist() == [0] * 3 + [1] * 3
    row = evaluate_features(str(find_config(config)), str(path), k=3, options=options, data='own')[0]
    assert 0 < row.value < 100
    assert bootmae.evaluate_knn(encoder, labeled / 'train', labeled / 'val', k=3) == row.value


def test_images_of_the_size_of_the_input_are_not_scaled(home, encoder):
    """As the debug and CIFAR configs evaluate."""
    features, _ = knn_features('bootmae_debug_finetune', home / 'work_dirs/bootmae_debug/epoch_2.pth')
    digits = DigitImages(split='val', size=32, pipeline=[]).images(range(20))
    assert_close(bootmae.extract_features(encoder, digits), features[:20], rtol=0, atol=2e-6)


def test_the_norm_of_a_fine_tuned_classifier_counts(tmp_path, randomize):
    model = randomize(bootmae.build('bootmae_debug_finetune')).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'tuned.pth')
    x = torch.randn(2, 3, 32, 32)
    encoder = bootmae.load_encoder(tmp_path / 'tuned.pth', num_heads=3)
    assert_close(bootmae.extract_features(encoder, x), model.backbone(x)[0].detach())
    assert encoder.notes == (
        "The file does not record its input statistics: ImageNet's assumed (--statistics half for 0.5).",
    )
    assert bootmae.load_encoder(tmp_path / 'tuned.pth', num_heads=3, statistics='half').preprocessing.mean[0] == 127.5


def test_the_momentum_encoder(api_checkpoint):
    path = api_checkpoint('bootmae_debug')
    state = torch.load(path)['state_dict']
    online, momentum = (bootmae.load_encoder(path, source=source) for source in ('online', 'momentum'))
    key = 'blocks.1.mlp.fc1.weight'
    assert torch.equal(momentum.vit.state_dict()[key].cpu(), state[f'momentum.{key}'])
    assert torch.equal(online.vit.state_dict()[key].cpu(), state[f'backbone.{key}'])
    assert not torch.equal(state[f'momentum.{key}'], state[f'backbone.{key}'])


def test_an_encoder_of_timm(tmp_path, randomize):
    vit = randomize(VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1)).eval()
    torch.save(vit.state_dict(), tmp_path / 'vit.pth')
    encoder, x = bootmae.load_encoder(tmp_path / 'vit.pth', img_size=(32, 64)), torch.randn(2, 3, 32, 32)
    assert encoder.preprocessing.size == (32, 64)
    assert encoder.notes[1] == 'The file does not record the number of heads: 1 assumed.'
    theirs = vit.forward_intermediates(x, norm=False, intermediates_only=True)[-1].detach()
    assert_close(bootmae.load_encoder(tmp_path / 'vit.pth').feature_maps(x), theirs, rtol=1e-3, atol=1e-3)


# ---- images of every kind


def test_one_image_in_every_form(encoder, labeled, tmp_path):
    path = labeled / 'val' / 'sky' / '1.png'
    pixels = np.asarray(Image.open(path))
    expected = bootmae.extract_features(encoder, str(path))
    assert expected.shape == (1, 48)
    assert expected.dtype == torch.float32
    forms = [path, [path], Image.open(path), pixels, pixels[None], [pixels], (each for each in [pixels])]
    for form in [*forms, encoder.preprocess(path), encoder.preprocess([pixels]).double()]:
        assert torch.equal(bootmae.extract_features(encoder, form), expected)


def test_folders_and_archives_are_sorted_by_path(encoder, labeled, tmp_path):
    paths = sorted((labeled / 'val').glob('*/*.png'))
    expected = bootmae.extract_features(encoder, paths)
    for batch_size in (1, 4):
        assert_close(bootmae.extract_features(encoder, labeled / 'val', batch_size), expected)
    with tarfile.open(tmp_path / 'val.tar', 'w') as archive:
        archive.add(labeled / 'val', 'val')
    assert_close(bootmae.extract_features(encoder, tmp_path / 'val.tar'), expected)
    swapped = bootmae.extract_features(encoder, [paths[4], Image.open(paths[0])])
    assert_close(swapped, expected[[4, 0]])


# ---- dense features


def test_feature_maps_of_images_of_other_sizes(encoder):
    x = torch.randn(3, 3, 24, 40)
    maps = encoder.feature_maps(x, batch_size=2)
    assert maps.shape == (3, 48, 6, 10)
    assert_close(encoder.fc_norm.cpu()(maps.mean(dim=(2, 3))), bootmae.extract_features(encoder, x))
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    normal = encoder.preprocessing.normalize(pixels)[None]
    assert_close(normal, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    assert torch.equal(encoder.feature_maps(pixels), encoder.feature_maps(normal))
    assert torch.equal(encoder.feature_maps([pixels, pixels], size=(24, 40))[1], encoder.feature_maps(normal)[0])
    assert encoder.feature_maps([pixels], size=16).shape == (1, 48, 4, 4)


def test_another_preprocessing(encoder, labeled):
    path = labeled / 'val' / 'sky' / '2.png'
    other = bootmae.load_encoder(labeled.parent / 'work_dirs' / 'bootmae_debug')
    other.preprocessing = replace(other.preprocessing, size=(16, 16), resize=(16, 16), interpolation='bilinear')
    small = np.asarray(Image.open(path).resize((16, 17), Image.Resampling.BILINEAR))[:16]
    assert torch.equal(bootmae.extract_features(other, path), bootmae.extract_features(other, small))
    assert other.preprocess(path).shape == (1, 3, 16, 16)


# ---- what a program around it notices


def test_nothing_is_printed_and_the_scope_stays(home, encoder, tmp_path, capfd):
    shutil.copytree(home / 'labeled', tmp_path / 'labeled')
    for split in ('train', 'val'):
        (tmp_path / 'labeled' / split / 'notes.txt').write_text('not an image')
    log = next((home / 'work_dirs' / 'bootmae_debug').glob('*/*.log'))
    size, scopes, loggers = log.stat().st_size, dict(DefaultScope._instance_dict), list(MMLogger._instance_dict)
    bootmae.evaluate_knn(encoder, tmp_path / 'labeled/train', tmp_path / 'labeled/val')
    bootmae.load_encoder(home / 'work_dirs/bootmae_debug', source='momentum')
    bootmae.build('bootmae_debug')
    bootmae.build('mae_debug')
    assert capfd.readouterr() == ('', '')
    assert log.stat().st_size == size
    assert dict(DefaultScope._instance_dict) == scopes
    assert list(MMLogger._instance_dict) == loggers


def test_an_encoder_is_a_module(encoder):
    assert repr(encoder) == 'Encoder(BootMAE run (online): 2 blocks, width 48, patches 4 x 4, images 32 x 32)'
    assert not encoder.training
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert (encoder.width, encoder.patch_size, encoder.kind) == (48, (4, 4), 'BootMAE run (online)')
    for wrong, found in (('cat.jpg', "'cat.jpg'"), (torch.zeros(1, 1, 32, 32), r'a tensor float32 \(1, 1, 32, 32\)')):
        with pytest.raises(ValueError, match=f'^{found} is no input of this encoder: give floating point values'):
            encoder(wrong)
    head = torch.nn.Linear(encoder.width, 2)
    head(encoder(torch.randn(1, 3, 32, 32))).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_threads_leave_nothing_behind(home, encoder):
    before = [dict(DefaultScope._instance_dict), dict(MMLogger._instance_dict), warnings.filters[:]]
    path = home / 'work_dirs/bootmae_debug'

    def use(name: str) -> torch.Tensor:
        bootmae.build(name)
        return bootmae.extract_features(bootmae.load_encoder(path), home / 'cat.jpg')

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(use, ['bootmae_debug', 'mae_debug', 'bootmae_debug_finetune', 'upernet_debug'] * 3))
    assert all(torch.equal(each, found[0]) for each in found)
    assert [dict(DefaultScope._instance_dict), dict(MMLogger._instance_dict), warnings.filters[:]] == before


@contextmanager
def default_type(dtype: torch.dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    'settings',
    [
        lambda: default_type(torch.float64),
        lambda: default_type(torch.bfloat16),
        lambda: torch.device('meta'),
        torch.inference_mode,
    ],
)
def test_settings_of_the_program_change_nothing(home, encoder, settings):
    expected = bootmae.extract_features(encoder, home / 'cat.jpg')
    accuracy = bootmae.evaluate_knn(encoder, home / 'labeled/train', home / 'labeled/val', k=3)
    with settings():
        loaded = bootmae.load_encoder(home / 'work_dirs/bootmae_debug')
        model = bootmae.build('bootmae_debug')
        assert loaded.preprocess(home / 'cat.jpg').dtype == torch.float32
        assert loaded.preprocessing(home / 'cat.jpg').device.type == 'cpu'
        assert torch.equal(bootmae.extract_features(loaded, home / 'cat.jpg'), expected)
        assert bootmae.evaluate_knn(loaded, home / 'labeled/train', home / 'labeled/val', k=3) == accuracy
    weights = [*loaded.parameters(), *model.parameters()]
    assert {(weight.dtype, weight.is_inference()) for weight in weights} == {(torch.float32, False)}
    assert {weight.device.type for weight in model.parameters()} == {'cpu'}
    assert any(weight.requires_grad for weight in model.parameters())


def test_features_beyond_half_precision(encoder):
    broken = copy.deepcopy(encoder).half()
    broken.fc_norm.weight.fill_(6e4)
    with pytest.raises(ValueError, match=r'features of images 0 to 1 are not all finite.* use encoder.float\(\)'):
        bootmae.extract_features(broken, torch.randn(2, 3, 32, 32))


# ---- user errors


@pytest.mark.parametrize(
    ('images', 'error', 'message'),
    [
        ('gone.jpg', FileNotFoundError, 'there is no image gone.jpg'),
        (['cat.jpg', 'gone/1.jpg'], FileNotFoundError, 'there is no image gone/1.jpg'),
        ('work_dirs', FileNotFoundError, 'no images in work_dirs'),
        (['labeled'], ValueError, 'labeled is a folder'),
        ('broken.png', ValueError, 'broken.png cannot be decoded as an image'),
        ([], ValueError, 'no images were given'),
        (None, ValueError, 'None is not an image here: give a path, a PIL image'),
        (np.zeros((8, 8), np.uint8), ValueError, r'an array uint8 \(8, 8\) is not an image here'),
        (np.zeros((2, 8, 8, 3)), ValueError, r'an array float64 \(8, 8, 3\) is not an image here'),
        ([torch.zeros(3, 32, 32)], ValueError, r'a tensor float32 \(3, 32, 32\) is not an image here'),
        (torch.zeros(3, 32, 32), ValueError, r'a tensor float32 \(3, 32, 32\) is no input.*\(images, 3, height'),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ValueError, 'encoder.preprocess'),
        (torch.zeros(1, 1, 32, 32), ValueError, r'\(1, 1, 32, 32\) is no input'),
        (torch.zeros(0, 3, 32, 32), ValueError, 'the tensor is empty'),
        (torch.zeros(1, 3, 30, 32), ValueError, '30 x 32 pixels are not a multiple of the patch size 4 x 4'),
        (torch.zeros(1, 3, 0, 32), ValueError, '0 x 32 pixels are not a multiple of the patch size 4 x 4'),
        (
            torch.full((1, 3, 32, 32), 200.0),
            ValueError,
            'values up to 200, normalized images up to 1: give encoder.pre',
        ),
        (
            torch.full((1, 3, 32, 32), torch.nan),
            ValueError,
            'images 0 to 0 are not all finite: give tensors without NaN',
        ),
        (Image.new('I;16', (8, 8)), ValueError, 'PIL image of mode I;16: scale its values to 0..255'),
        (Image.new('RGB', (0, 8)), ValueError, r'an array uint8 \(8, 0, 3\) is not an image here'),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r'an array uint8 \(0, 8, 3\) is not an image here'),
        ('file:///cat.jpg', ValueError, 'file:///cat.jpg cannot be read .*: give the path of a file'),
        (['a' * 5000], ValueError, 'aaaa cannot be read .*too long'),
        (
            '12_bits.png',
            ValueError,
            '12_bits.png: uint16 values 0 to 4,080 are read as 0 to 15 of 255.*in 1 of 1 image',
        ),
        (['cat.jpg', '12_bits.png', Path('12_bits.png')], ValueError, '12_bits.png: uint16.*in 2 of 3 images'),
    ],
)
def test_what_is_no_image(encoder, home, monkeypatch, images, error, message):
    monkeypatch.chdir(home)
    (home / 'broken.png').write_bytes(b'no image')
    Image.fromarray(np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)).save('12_bits.png')
    with pytest.raises(error, match=message):
        bootmae.extract_features(encoder, images)


def test_sizes_that_do_not_fit(encoder):
    images = [np.zeros((side, 32, 3), np.uint8) for side in (32, 32, 64)]
    for batch_size in (2, 3):
        with pytest.raises(ValueError, match='the images have different sizes.*give size=...'):
            encoder.feature_maps(images, batch_size=batch_size)
    with pytest.raises(ValueError, match='30 x 32 pixels.*give size=... to feature_maps'):
        encoder.feature_maps(np.zeros((30, 32, 3), np.uint8))
    for wrong in (0, 1.5, '8', None):
        with pytest.raises(ValueError, match=f'batch_size={wrong!r}: give a whole number of at least 1'):
            encoder.feature_maps(images, batch_size=wrong)
    with pytest.raises(ValueError, match='size=64 scales images, but a tensor is taken as it is: leave size out'):
        encoder.feature_maps(torch.zeros(1, 3, 32, 32), size=64)
    with pytest.raises(ValueError, match=r'^size=\(32, 32, 3\): give a positive number of pixels, or height and width'):
        encoder.feature_maps(images, size=(32, 32, 3))


def test_what_is_no_encoder(home, encoder, labeled):
    checkpoint = home / 'work_dirs/bootmae_debug/epoch_2.pth'
    with pytest.raises(FileNotFoundError, match='no checkpoint .*gone.pth'):
        bootmae.load_encoder(home / 'gone.pth')
    for wrong in (None, '', {'model': 1}):
        with pytest.raises(ValueError, match=f'^checkpoint={wrong!r}: give a path'):
            bootmae.load_encoder(wrong)
    with pytest.raises(ValueError, match=r'was not loaded: image size \(30, 30\) is not a multiple'):
        bootmae.load_encoder(checkpoint, img_size=30)
    for wrong in (0, '64', (64, 64, 3)):
        with pytest.raises(ValueError, match='^img_size=.*: give a positive number of pixels, or height and width'):
            bootmae.load_encoder(checkpoint, img_size=wrong)
    with pytest.raises(ValueError, match='--heads 2, but the file records 3 heads'):
        bootmae.load_encoder(checkpoint, num_heads=2)
    with pytest.raises(ValueError, match="no weights named 'vit_bass_patch16_224.mae'; near names: vit_base"):
        bootmae.load_encoder('timm:vit_bass_patch16_224.mae')
    for function in (bootmae.extract_features, lambda *args: bootmae.evaluate_knn(*args, labeled)):
        with pytest.raises(ValueError, match="encoder='epoch_2.pth': give the result of bootmae.load_encoder"):
            function('epoch_2.pth', labeled)


def test_folders_that_k_nn_refuses(encoder, labeled, tmp_path):
    train = labeled / 'train'
    shutil.copytree(labeled / 'val', tmp_path / 'val')
    (tmp_path / 'val' / 'sky').rename(tmp_path / 'val' / 'sea')
    with pytest.raises(ValueError, match=r'train has the class sky and .*val has not \(1 of 2 classes differ\)'):
        bootmae.evaluate_knn(encoder, train, tmp_path / 'val')
    shutil.rmtree(tmp_path / 'val' / 'sea')
    with pytest.raises(ValueError, match='train has the class sky'):
        bootmae.evaluate_knn(encoder, train, tmp_path / 'val')
    with pytest.raises(ValueError, match='holds splits and not classes: give two of them'):
        bootmae.evaluate_knn(encoder, labeled, tmp_path / 'val')
    with pytest.raises(ValueError, match=r'train share 10 images \(.*each would be its own neighbor'):
        bootmae.evaluate_knn(encoder, train, labeled / 'val' / '..' / 'train')
    for wrong in (0, 2.5, '5'):
        with pytest.raises(ValueError, match=f'k={wrong!r}: give a whole number of at least 1'):
            bootmae.evaluate_knn(encoder, train, labeled / 'val', k=wrong)
    with pytest.raises(ValueError, match='k=11: only 10 labeled images are there; give at most that many neighbors'):
        bootmae.evaluate_knn(encoder, train, labeled / 'val', k=11)
    for wrong in (0, float('nan')):
        with pytest.raises(ValueError, match=f'temperature={wrong}: give a positive number'):
            bootmae.evaluate_knn(encoder, train, labeled / 'val', temperature=wrong)
    with pytest.raises(ValueError, match='test=None: give a path'):
        bootmae.evaluate_knn(encoder, train, None)
    with pytest.raises(FileNotFoundError, match='gone does not exist'):
        image_set(labeled / 'gone')
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links' / 'sky').symlink_to(train / 'sky')
    shutil.copytree(labeled / 'val' / 'grass', tmp_path / 'links' / 'grass')
    with pytest.raises(ValueError, match=r'links share 5 images \(.*0.png'):
        bootmae.evaluate_knn(encoder, train, tmp_path / 'links')
