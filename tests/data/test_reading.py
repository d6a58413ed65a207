"""ReadCrop compared with the upstream transforms."""

import io

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from bootmae.data import images, reading
from bootmae.data.embedded import photo
from bootmae.data.reading import ClampedResizedCrop, ReadCrop, reduction

SIZE = 48
CROP = dict(scale=SIZE, crop_ratio_range=(0.2, 1.0))
FLIP = dict(prob=0.5)


def files() -> dict[str, bytes]:
    """The same photograph in common formats, 180 x 240; ``small`` is 30 x 40."""
    picture = Image.fromarray(photo('flower')).resize((240, 180), Image.Resampling.LANCZOS)
    turned, small = {}, picture.resize((40, 30))
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned[f'turned {orientation}'] = save(picture, exif=exif)
    wide = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR).astype(np.uint16) * 257
    return turned | {
        '444': save(picture, subsampling=0),
        '420': save(picture, subsampling=2),
        'small': save(small, subsampling=0),
        'gray': save(picture.convert('L')),
        'progressive': save(picture, progressive=True),
        'cmyk': save(picture.convert('CMYK')),
        'png': save(picture, 'PNG'),
        'palette': save(picture.quantize(64), 'PNG'),
        'alpha': save(picture.convert('RGBA'), 'PNG'),
        '16 bits': cv2.imencode('.png', wide)[1].tobytes(),
    }


def save(picture: Image.Image, kind: str = 'JPEG', **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **(dict(quality=95) if kind == 'JPEG' else {}) | options)
    return buffer.getvalue()


FILES = files()


def stock(*steps: dict, crop: dict = CROP) -> Compose:
    init_default_scope('mmpretrain')
    return Compose(
        [
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', interpolation='bicubic', backend='pillow', **crop),
            dict(type='RandomFlip', **FLIP),
            *steps,
        ]
    )


def seeded(pipeline, path, seed: int) -> dict:
    np.random.seed(seed)
    return pipeline(dict(img_path=str(path)))


def error_of(ours: np.ndarray, path, seed: int, step: ReadCrop) -> np.ndarray:
    """Difference from the crop as Pillow up to 12 resizes it, horizontally first.

    Pillow 13 sometimes resizes vertically first, which changes pixels next to the sharpest edges.
    """
    image = cv2.imread(str(path))
    np.random.seed(seed)
    (top, left, height, width), flipped = step.draw(image.shape[:2], {})
    crop = Image.fromarray(image[top : top + height, left : left + width])
    for shape in ((step.size[1], height), step.size[::-1]):
        crop = crop.resize(shape, Image.Resampling.BICUBIC)
    return np.abs(ours.astype(int) - np.asarray(crop)[:, :: -1 if flipped else 1])


@pytest.mark.parametrize('name', FILES)
def test_the_same_image_as_from_the_stock_transforms(name, tmp_path):
    """Off by at most 1 level (2 if enlarged) from horizontal-first resizing, by 0.5 on average from any Pillow."""
    path = tmp_path / name
    path.write_bytes(FILES[name])
    step, reference, flips = ReadCrop(CROP, FLIP), stock(), set()
    for seed in range(6):
        ours, theirs = seeded(step, path, seed), seeded(reference, path, seed)
        after = np.random.random()
        seeded(reference, path, seed)
        assert after == np.random.random()  # what comes next sees the same random numbers
        assert np.abs(ours['img'].astype(int) - theirs['img']).mean() < 0.5
        assert error_of(ours['img'], path, seed, step).max() <= (2 if name == 'small' else 1)
        flips.add(ours['flip'])
        for key in ('img_shape', 'ori_shape', 'flip', 'flip_direction', 'img_path'):
            assert ours[key] == theirs[key]
    assert flips == {True, False}


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_large_photograph_is_decoded_at_less_than_its_size(orientation, tmp_path, monkeypatch):
    """At most 16 levels of 255 off, and less than 1 on average."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / 'large.jpg'
    path.write_bytes(save(Image.fromarray(photo('china')[:401, :603]), exif=exif))  # no multiples of 8
    step, factors, cut = ReadCrop(dict(CROP, scale=(24, 32)), FLIP), [], reading.cut_reduced
    monkeypatch.setattr(reading, 'cut_reduced', lambda *arguments: factors.append(arguments[-1]) or cut(*arguments))
    for seed in range(6):
        ours, theirs = seeded(step, path, seed), seeded(stock(crop=dict(CROP, scale=(24, 32))), path, seed)
        error = error_of(ours['img'], path, seed, step)
        assert error.mean() < 1
        assert error.max() <= 16
        assert ours['ori_shape'] == theirs['ori_shape']
        assert ours['flip'] == theirs['flip']
    assert {2, 4} >= set(factors)
    assert len(factors) >= 4


def test_how_far_an_image_is_reduced():
    box = [reduction((0, 0, side, 4000), (100, 100)) for side in (100, 399, 400, 799, 800, 1600, 9999)]
    assert box == [1, 1, 2, 2, 4, 8, 8]


@pytest.mark.parametrize('name', ['444', '420'])
def test_bytes_and_box_for_the_gpu_give_the_same_image(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    for seed in range(3):
        coded, plain = (seeded(ReadCrop(CROP, FLIP, mode, planes=True), path, seed) for mode in ('gpu', 'cpu'))
        assert coded['img'].numpy().tobytes() == FILES[name]
        top, left, height, width, flipped = coded['crop_box'].tolist()
        crop = F.resized_crop(
            decode_jpeg(coded['img']), top, left, height, width, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True
        ).flip([0, 2] if flipped else [0])
        # torchvision's and OpenCV's libjpeg round the colors of 4:2:0 differently.
        assert (crop.int() - plain['img'].int()).abs().max() <= 3
        assert flipped == plain['flip']
        assert coded['ori_shape'] == (180, 240)


@pytest.mark.parametrize('name', ['gray', 'progressive', 'turned 6', 'cmyk', 'png'])
def test_what_the_gpu_is_not_trusted_with_is_finished_in_the_worker(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    ours, plain = (seeded(ReadCrop(CROP, FLIP, mode, planes=True), path, 0) for mode in ('gpu', 'cpu'))
    assert torch.equal(ours['img'], plain['img'])
    assert ours['img'].shape == (3, SIZE, SIZE)
    assert ours['crop_box'].tolist() == [0, 0, SIZE, SIZE, 0]


def test_planes_are_packed_as_arrays_are(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(FILES['444'])
    init_default_scope('mmpretrain')
    packed = [
        seeded(Compose([dict(type='ReadCrop', crop=CROP, flip=FLIP, planes=planes), dict(type='PackInputs')]), path, 1)[
            'inputs'
        ]
        for planes in (True, False)
    ]
    assert torch.equal(*packed)
    assert packed[0].is_contiguous()
    assert packed[0].dtype == torch.uint8
    theirs = seeded(stock(dict(type='PackInputs')), path, 1)['inputs']
    assert (packed[0].float() - theirs).abs().mean() < 0.5


@pytest.mark.parametrize('mode', ['cpu', 'gpu'])
@pytest.mark.parametrize('case', ['cut', 'zeros', 'header only', 'empty', 'text', 'png', 'no such', 'claims'])
def test_broken_files_are_named(case, mode, tmp_path):
    """The data set reads the file only once."""
    whole = FILES['420']
    frame = whole.index(b'\xff\xc0') + 5
    data = {
        'cut': whole[: len(whole) // 2],
        'zeros': whole[:4000] + bytes(len(whole) - 4000),
        'header only': whole[:30],
        'empty': b'',
        'text': b'<html>404</html>',
        'png': FILES['png'][:2000],
        'no such': whole,
        'claims': whole[:frame] + b'\xff\xdc' * 2 + whole[frame + 4 :],
    }[case]
    (tmp_path / 'bad.jpg').write_bytes(data)
    dataset = images.ImageFiles(str(tmp_path), pipeline=[dict(type='ReadCrop', crop=CROP, mode=mode)])
    if case == 'no such':
        (tmp_path / 'bad.jpg').unlink()
    with pytest.raises(FileNotFoundError if case == 'no such' else ValueError, match=r'bad\.jpg'):
        dataset[0]


def test_data_behind_the_end_of_a_jpeg_is_no_fault_and_no_file_is_opened_twice(tmp_path, monkeypatch):
    (tmp_path / 'a.jpg').write_bytes(FILES['444'] + b'\0' * 100)
    (tmp_path / 'b.jpg').write_bytes(FILES['444'])
    opened, get = [], reading.fileio.get
    monkeypatch.setattr(reading.fileio, 'get', lambda path, **options: opened.append(path) or get(path, **options))
    monkeypatch.setattr(images, 'check_whole', opened.append)
    dataset = images.ImageFiles(str(tmp_path), pipeline=[dict(type='ReadCrop', crop=CROP)])
    crops = []
    for index in range(2):
        np.random.seed(0)
        crops.append(dataset[index]['img'])
    assert np.array_equal(*crops)
    assert [path[-5:] for path in opened] == ['a.jpg', 'b.jpg']


def test_settings_that_it_does_not_do():
    for arguments, message in (
        (dict(mode='tpu'), 'tpu'),
        (dict(crop=dict(CROP, interpolation='bilinear')), 'bicubic'),
        (dict(crop=dict(CROP, backend='cv2')), 'pillow'),
        (dict(flip=dict(prob=0.5, direction='vertical')), 'vertical'),
    ):
        with pytest.raises(ValueError, match=message):
            ReadCrop(**dict(crop=CROP) | arguments)


# The crop of linear probing


def boxes_of_mae(number: int, height: int, width: int) -> np.ndarray:
    """Sides of boxes as facebookresearch/mae describes them: uniform area and log aspect ratio, then clamped."""
    rng = np.random.default_rng(1)
    area, aspect = height * width * rng.uniform(0.08, 1, number), np.exp(rng.uniform(-1, 1, number) * np.log(4 / 3))
    return np.stack(
        (np.minimum(np.round(np.sqrt(area / aspect)), height), np.minimum(np.round(np.sqrt(area * aspect)), width)),
        axis=1,
    )


@pytest.mark.parametrize('shape', [(20, 100), (100, 20), (60, 60)])
def test_clamped_boxes(shape):
    """Sides follow facebookresearch/mae, positions are uniform; on a long image most boxes are clamped."""
    crop = ClampedResizedCrop(scale=SIZE)
    boxes = np.array([crop.rand_crop_params(np.broadcast_to(np.uint8(0), shape)) for _ in range(4000)])
    places, sides = boxes[:, :2], boxes[:, 2:]
    assert (places >= 0).all()
    assert (places + sides <= shape).all()
    theirs = boxes_of_mae(4000, *shape)
    for axis in (0, 1):
        assert sides[:, axis].mean() == pytest.approx(theirs[:, axis].mean(), rel=0.02)
        assert sides[:, axis].std() == pytest.approx(theirs[:, axis].std(), abs=0.4)
        clamped = (sides[:, axis] == shape[axis]).mean()
        assert clamped == pytest.approx((theirs[:, axis] == shape[axis]).mean(), abs=0.02)
    assert (sides == np.array(shape)).any(axis=1).mean() > (0.7 if shape[0] != shape[1] else 0.05)
    free = shape - sides
    assert (places[free > 10] / free[free > 10]).mean() == pytest.approx(0.5, abs=0.02)


def test_reading_draws_the_same_clamped_boxes():
    step, crop = ReadCrop(CROP, clamped=True), ClampedResizedCrop(**CROP)
    for seed in range(20):
        np.random.seed(seed)
        box = step.draw((20, 100), {})[0]
        np.random.seed(seed)
        assert box == crop.rand_crop_params(np.zeros((20, 100, 3), np.uint8))
