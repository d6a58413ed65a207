"""ONNX files agree with torch, say what they are, and are refused where they cannot be right."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from calling import call_tool
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

from bootmae.commands import export_onnx as exporting
from bootmae.commands.export_onnx import export_onnx
from bootmae.commands.onnx_graphs import AdaptivePool, FromPixels
from bootmae.config.load import load_config
from bootmae.config.model import build_model
from bootmae.data.embedded import photo
from bootmae.evaluation.probe import build_encoder
from bootmae.places import REPOSITORY

CONFIGS = REPOSITORY / 'configs'
FINETUNE = str(CONFIGS / 'cls' / 'bootmae_debug_finetune.py')
PRETRAIN = str(CONFIGS / 'pretrain' / 'bootmae_debug.py')
UPERNET = str(CONFIGS / 'seg' / 'upernet_debug.py')
SMALL = {  # a dynamic size makes each operation of the export slow
    'model.backbone.arch.depth': 1,
    'model.backbone.pyramid.scales': (2, 1),
    'model.decode_head.in_channels': [32, 32],
    'model.decode_head.in_index': [0, 1],
    'model.decode_head.pool_scales': (5,),
    'model.auxiliary_head': None,
}
VIT = dict(arch=dict(embed_dims=24, depth=3, num_heads=4), img_size=32, patch_size=8)
CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def write(path: Path, config: str, options: dict | None = None) -> str:
    """Write a file of a run of a config, with random weights and batch statistics."""
    model = build_model(load_config(config, options))
    generator = torch.Generator().manual_seed(5)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not name.endswith(('pos_embed', 'data_preprocessor.mean', 'preprocessor.std')):
            value.data.add_(0.05 * torch.randn(value.shape, generator=generator))
    facts = dict(mean=[127.5] * 3, std=[127.5] * 3, img_size=list(model.backbone.img_size), config='configs/some.py')
    facts['num_heads'] = model.backbone.num_heads
    meta = dict(bootmae=facts, dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return str(path)


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('files')
    return dict(
        classifier=write(folder / 'classifier.pth', FINETUNE),
        pretraining=write(folder / 'pretraining.pth', PRETRAIN),
        segmentor=write(folder / 'segmentor.pth', UPERNET, SMALL),
    )


@pytest.fixture(scope='module')
def classifier(files, tmp_path_factory) -> Path:
    """The exported classifier, which takes uint8 images."""
    path = tmp_path_factory.mktemp('exported') / 'vitb.onnx'
    assert call_tool('export_onnx', FINETUNE, files['classifier'], path, '--uint8', 'nhwc') == 0
    return path


def images(height: int, width: int, count: int = 2) -> np.ndarray:
    """Photographs other than those of the export's own check, RGB uint8 (B, H, W, 3)."""
    names = ('rocket', 'retina', 'grace_hopper')[:count]
    return np.stack([cv2.resize(photo(name), (width, height)) for name in names])


def normalized(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5


def outputs(path: Path, given) -> np.ndarray:
    (found,) = onnxruntime.InferenceSession(path).run(None, {'images': np.ascontiguousarray(given)})
    return found


@pytest.mark.parametrize('count', [1, 3])
def test_a_classifier_of_pixels(files, classifier, count):
    pixels = images(32, 32, count)
    with torch.no_grad():
        model = build_model(load_config(FINETUNE), files['classifier']).eval()
        expected = model.head(model.backbone(normalized(pixels))).numpy()
    np.testing.assert_allclose(outputs(classifier, pixels), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_what_the_file_says(files, classifier):
    facts = onnxruntime.InferenceSession(classifier).get_modelmeta().custom_metadata_map
    assert facts['config'] == 'configs/cls/bootmae_debug_finetune.py'
    assert (facts['checkpoint'], facts['trained_by']) == ('classifier.pth', 'configs/some.py')
    assert re.fullmatch('[0-9a-f]{12}', facts['encoder_sha256'])
    assert (facts['input'], facts['channels'], facts['output']) == ('uint8 RGB, 0..255, nhwc', 'RGB', 'logits')
    found = {key: json.loads(facts[key]) for key in ('mean', 'std', 'image_size', 'classes', 'opset')}
    assert found == dict(
        mean=[127.5] * 3, std=[127.5] * 3, image_size=[32, 32], classes=list(CLASSES), opset=exporting.OPSET
    )
    (domain,) = onnx.load(classifier).opset_import
    assert domain.version == exporting.OPSET
    content = classifier.read_bytes()
    assert str(REPOSITORY).encode() not in content
    assert b'site-packages' not in content


def test_the_example_of_the_docs(classifier, tmp_path, monkeypatch, capsys):
    """docs/onnx.md: what it prints is the class of the largest logit."""
    (code,) = re.findall(r'```python\n(.*?)```', (REPOSITORY / 'docs' / 'onnx.md').read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path('vitb.onnx').symlink_to(classifier)
    Image.fromarray(photo('rocket')).save('photo.jpg')
    exec(code, {})
    pixels = np.asarray(Image.open('photo.jpg').resize((32, 32), Image.Resampling.BICUBIC))[None]
    assert capsys.readouterr().out == CLASSES[outputs(classifier, pixels)[0].argmax()] + '\n'


def test_pooled_features_of_the_momentum_encoder(files, tmp_path, capsys):
    """Those that tools/knn.py evaluates, from a pretraining file, of images that are normalized already."""
    path = tmp_path / 'pooled.onnx'
    assert call_tool('export_onnx', FINETUNE, files['pretraining'], path, '--source', 'momentum') == 0
    out = capsys.readouterr().out
    assert 'pooled of ImageClassifier' in out
    assert 'images (batch, 3, 32, 32) -> pooled (batch, 48)' in out
    difference = float(re.search(r'ONNX Runtime and torch on 3 photographs: largest difference (\S+),', out)[1])
    assert 0 < difference < 1e-4
    given = normalized(images(32, 32))
    with torch.no_grad():
        expected, other = (
            build_encoder(load_config(FINETUNE), files['pretraining'], source).backbone(given)[0].numpy()
            for source in ('momentum', 'online')
        )
    np.testing.assert_allclose(outputs(path, given), expected, atol=1e-5)
    assert np.abs(other - expected).max() > 0.1


def test_converted_statistics(files, tmp_path):
    """Features of weights that the config converts to its own normalization are those of tools/knn.py."""
    content = torch.load(files['pretraining'])
    content['meta']['bootmae'] |= dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    torch.save(content, tmp_path / 'imagenet.pth')
    options, given = dict(convert_statistics=True), normalized(images(32, 32))
    text = export_onnx(FINETUNE, tmp_path / 'imagenet.pth', tmp_path / 'a.onnx', 'pooled', options=options)
    assert 'patch embedding converted from mean [123.675, 116.28, 103.53]' in text
    with torch.no_grad():
        converted, raw = (
            build_encoder(load_config(FINETUNE, more), file).backbone(given)[0].numpy()
            for file, more in ((str(tmp_path / 'imagenet.pth'), options), (files['pretraining'], {}))
        )
    np.testing.assert_allclose(outputs(tmp_path / 'a.onnx', given), converted, atol=1e-5)
    assert np.abs(converted - raw).max() > 0.1


def test_channels_are_not_taken_for_colors(tmp_path):
    """Three channels of a file stay in its order, which --uint8 would reverse."""
    config, options = str(CONFIGS / 'cls' / 'bootmae_cifar10_cpu_finetune.py'), {'image_channels': dict(number=3)}
    file = write(tmp_path / 'a.pth', config, options)
    with pytest.raises(ValueError, match=r"--uint8 nhwc is .* the setting image_channels={'number': 3}: leave --uint8"):
        export_onnx(config, file, tmp_path / 'a.onnx', uint8='nhwc', options=options)
    export_onnx(config, file, tmp_path / 'a.onnx', options=options)
    facts = onnxruntime.InferenceSession(tmp_path / 'a.onnx').get_modelmeta().custom_metadata_map
    assert facts['channels'] == "as image_channels={'number': 3} reads them, scaled to 0..255"
    preprocessor = build_model(load_config(config, options)).data_preprocessor
    given = images(32, 32)
    torch.testing.assert_close(exporting.preprocessed(given, preprocessor, as_stored=True), normalized(given))


@pytest.mark.slow
def test_dense_features_of_any_size(files, tmp_path):
    """Those of a PlainViT that is built for the size and interpolates its positions as it loads them."""
    shallow = {'model.backbone.depth': 1}
    path = tmp_path / 'dense.onnx'
    export_onnx(FINETUNE, files['pretraining'], path, 'dense', size=['dynamic'], options=shallow)
    for height, width in ((32, 32), (20, 44)):
        options = shallow | {'model.backbone.out_type': 'featmap', 'model.backbone.img_size': (height, width)}
        backbone = build_encoder(load_config(FINETUNE, options), files['pretraining']).backbone
        given = normalized(images(height, width))
        with torch.no_grad():
            expected = backbone(given)[0].numpy()
        assert expected.shape == (2, 48, height // 4, width // 4)
        np.testing.assert_allclose(outputs(path, given), expected, atol=2e-5)
    facts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert (facts['final_norm'], facts['image_size']) == ('true', 'multiples of [4, 4]')


@pytest.mark.slow
def test_a_segmentor_of_any_size(files, tmp_path):
    """With relative positions, pyramid pooling with bins that do not divide the map, and channels before rows."""
    path = tmp_path / 'segmentor.onnx'
    export_onnx(UPERNET, files['segmentor'], path, uint8='nchw', size=['dynamic'], options=SMALL)
    model = build_model(load_config(UPERNET, SMALL), files['segmentor']).eval()
    for height, width in ((96, 144), (64, 88)):
        pixels = images(height, width)
        with torch.no_grad():
            expected = model.encode_decode(normalized(pixels), [dict(img_shape=(height, width))]).numpy()
        found = outputs(path, pixels.transpose(0, 3, 1, 2))
        assert found.shape == (2, 5, height, width)
        np.testing.assert_allclose(found, expected, atol=5e-5)


@pytest.mark.parametrize('side', [1, 2, 3, 6])
@pytest.mark.parametrize('size', [(6, 9), (16, 16), (5, 4)])
def test_adaptive_pool(side, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(AdaptivePool(side)(x), nn.AdaptiveAvgPool2d(side)(x))


@pytest.mark.parametrize('layout', ['nhwc', 'nchw'])
@pytest.mark.parametrize(
    'settings',
    [
        dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=True),
        dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=False),
        dict(type='mmseg.SegDataPreProcessor', bgr_to_rgb=True, size=(64, 64), test_cfg=dict(size=(64, 64))),
        dict(type='mmseg.SegDataPreProcessor'),
    ],
)
def test_pixels_are_preprocessed_as_by_the_model(settings, layout):
    """The models read images as BGR, as OpenCV gives them; the graph gets RGB. Padding is left out."""
    statistics = dict(mean=[100.0, 110.0, 130.0], std=[50.0, 60.0, 70.0])
    preprocessor = MODELS.build(settings | statistics)
    pixels = images(40, 24)
    converts = settings.get('to_rgb') or settings.get('bgr_to_rgb')
    expected = pixels if converts else pixels[..., ::-1]
    expected = ((expected - np.array(statistics['mean'])) / np.array(statistics['std'])).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(exporting.preprocessed(pixels, preprocessor), expected, atol=1e-5)
    graph = FromPixels(nn.Identity(), preprocessor, layout)
    np.testing.assert_allclose(graph(exporting.arranged(pixels, layout)), expected, atol=1e-5)


# --- what is refused ---


def test_a_file_that_differs_is_not_put_in_place(files, classifier, tmp_path, monkeypatch):
    """The weights of the graph are changed a little between export and check."""
    changed = onnx.load(classifier)
    (bias,) = (value for value in changed.graph.initializer if list(value.dims) == [10])
    values = onnx.numpy_helper.to_array(bias) + np.float32(2e-4)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    del changed.metadata_props[:]
    monkeypatch.setattr(exporting, 'to_onnx', lambda *_: changed)
    path = tmp_path / 'changed.onnx'
    arguments = FINETUNE, files['classifier'], path, None, 'nhwc'
    with pytest.raises(
        ValueError, match=r'changed.onnx was not written: .* more than 0.0001: largest difference 2.0e-04'
    ):
        export_onnx(*arguments)
    assert not list(tmp_path.iterdir())
    export_onnx(*arguments, tolerance=1e-3)
    assert path.is_file()


@pytest.mark.parametrize(
    'config, file, more, message',
    [
        (
            PRETRAIN,
            'pretraining',
            [],
            'has the model BootMAE with the backbone PlainViT, but only our ViT in an ImageCl',
        ),
        (
            CONFIGS / 'det' / 'mask_rcnn_debug.py',
            'pretraining',
            [],
            'has the model MaskRCNN: detectors cannot be exported',
        ),
        (FINETUNE, 'pretraining', ['--output', 'logits'], 'has no weights head.* of a trained ImageClassifier'),
        (UPERNET, 'pretraining', [], 'has no weights decode_head.* of a trained EncoderDecoder'),
        (UPERNET, 'segmentor', ['--output', 'dense'], '--output dense of a segmentor: give a config of configs/cls'),
        (UPERNET, 'segmentor', [], 'is not a checkpoint of this config'),
        (FINETUNE, 'segmentor', [], 'was not loaded into the backbone'),
        (FINETUNE, 'classifier', ['--size', 'dynamic'], 'take images of (32, 32) only'),
        (FINETUNE, 'classifier', ['--size', 64, 64], '--size 64 64: this model takes images of (32, 32)'),
        (FINETUNE, 'classifier', ['--size', 64], '--size 64: give HEIGHT WIDTH'),
        (FINETUNE, 'pretraining', ['--output', 'dense', '--size', 30, 32], 'image size (30, 32) is not a multiple of'),
        (FINETUNE, 'nothing', [], 'nothing'),
    ],
)
def test_what_does_not_fit(files, tmp_path, capsys, config, file, more, message):
    assert call_tool('export_onnx', config, files.get(file, file), tmp_path / 'a.onnx', *more) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('settings', [dict(window_size=2, global_blocks=(2,)), dict(pad=True), dict(class_token=False)])
def test_a_dynamic_size_is_refused_where_the_size_shapes_the_graph(settings):
    backbone = MODELS.build(dict(VIT, type='TransferViT', **settings))
    assert exporting.image_size(['24', '40'], backbone) == (24, 40)
    with pytest.raises(ValueError, match='--size dynamic: attention windows, .* need a fixed size'):
        exporting.image_size(['dynamic'], backbone)


def test_names_of_the_file(files, classifier, tmp_path, capsys):
    assert call_tool('export_onnx', FINETUNE, files['classifier'], tmp_path / 'a.pth') == 2
    assert 'a.pth: give a name that ends in .onnx' in capsys.readouterr().err
    assert call_tool('export_onnx', FINETUNE, files['classifier'], classifier) == 2
    assert 'vitb.onnx exists: use another name, or --force' in capsys.readouterr().err


def test_without_the_packages(files, tmp_path, capsys, monkeypatch):
    find = exporting.importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util, 'find_spec', lambda name, *rest: None if name == 'onnx' else find(name, *rest)
    )
    assert call_tool('export_onnx', FINETUNE, files['classifier'], tmp_path / 'a.onnx') == 2
    assert capsys.readouterr().err == 'error: the export needs onnx: pip install onnx\n'
