"""Images of any number of channels: read as stored, scaled once, and equal to plain NumPy arithmetic."""

import io
import struct

import cv2
import numpy as np
import pytest
import torch
from channel_files import npy, pixels, png, tiff
from mmpretrain.registry import MODELS
from PIL import Image

from bootmae.data.channels import ChannelFormat, LoadChannels, ResizeEdgeOfFloats
from bootmae.data.findings import DataFault
from bootmae.data.images import ImageFiles
from bootmae.data.reading import ReadCrop
from bootmae.data.value_checks import check_values

FIVE, ONE, THREE, FOUR = pixels(), pixels(1), pixels(3), pixels(4)
LZW_OF_TWO_PAGES = cv2.imencodemulti('.tiff', [ONE, ONE])[1].tobytes()
BYTES = pixels(4, 'uint8', 255)
CROP, FLIP = dict(scale=16, crop_ratio_range=(0.3, 1.0)), dict(prob=0.5)


def lzw(image: np.ndarray | Image.Image, **tags) -> bytes:
    """Compress a TIFF file as Pillow does it, which stores what each channel means."""
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, 'TIFF', compression='tiff_lzw', tiffinfo={int(key[1:]): value for key, value in tags.items()})
    return buffer.getvalue()


def without_alpha(data: bytes) -> bytes:
    """The same file, whose last channel is something else than alpha."""
    alpha, other = (struct.pack('<HHIHH', 338, 3, 1, kind, 0) for kind in (2, 0))
    assert data.count(alpha) == 1
    return data.replace(alpha, other)


def scaled(image: np.ndarray, low, high) -> np.ndarray:
    """What the network should get, before mean and deviation."""
    unit = (image.astype(np.float64) - low) / (np.asarray(high, dtype=np.float64) - low)
    return 255 * np.clip(unit, 0, 1)


@pytest.mark.parametrize(
    ('data', 'image', 'axis'),
    [
        (tiff(FIVE), FIVE, 'last'),
        (tiff(FIVE, separate=True), FIVE, 'first'),
        (tiff(FIVE, separate=True, metadata=None), FIVE, 'first'),  # five pages
        (tiff(FIVE, compression='zlib'), FIVE, 'last'),
        (tiff(FIVE, byteorder='>'), FIVE, 'last'),
        (tiff(pixels(dtype='float32')), pixels(dtype='float32'), 'last'),
        (npy(FIVE), FIVE, 'last'),
        (npy(FIVE.transpose(2, 0, 1)), FIVE, 'first'),
        (npy(pixels(dtype='>f4')), pixels(dtype='float32'), 'last'),
        (npy(pixels(dtype='float64')), pixels(dtype='float64'), 'last'),
        (npy(pixels(dtype='int32', high=2**30)), pixels(dtype='int32', high=2**30), 'last'),
        (npy(ONE[..., 0]), ONE, 'first'),
        (png(ONE), ONE, 'last'),
        (png(THREE), THREE, 'first'),  # the axis is that of arrays
        (png(FOUR), FOUR, 'last'),
        (png(pixels(1, 'uint8', 255)), pixels(1, 'uint8', 255), 'last'),
        (cv2.imencode('.tiff', THREE[..., ::-1])[1].tobytes(), THREE, 'last'),  # LZW
        (cv2.imencode('.tiff', FOUR[..., [2, 1, 0, 3]])[1].tobytes(), FOUR, 'last'),  # no channel is marked as alpha
        (lzw(BYTES[..., :3]), BYTES[..., :3], 'last'),
        (without_alpha(lzw(BYTES)), BYTES, 'last'),
        (lzw(ONE[..., 0]), ONE, 'last'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_values_are_read_as_stored(data, image, axis):
    found = ChannelFormat(image.shape[2], axis).read(data)
    assert (found.dtype.kind, found.dtype.itemsize) == (image.dtype.kind, image.dtype.itemsize)
    assert np.array_equal(found, image)


@pytest.mark.parametrize(
    ('dtype', 'high', 'ranges'),
    [
        ('uint8', 255, None),
        ('uint16', 65535, None),
        ('uint32', 2**32 - 1, None),
        ('uint16', 4095, (0, 4095)),
        ('int16', 3000, (-1000, 2500)),
        ('float32', 0.8, ((0, 1), (0.1, 0.7), (0, 0.5), (-1, 1), (0.2, 0.3))),
        ('float64', 1e6, (10.5, 5e5)),
    ],
)
def test_scaling_is_plain_arithmetic(dtype, high, ranges, tmp_path):
    image = pixels(dtype=dtype, high=high)
    np.save(tmp_path / 'a.npy', image)
    results = LoadChannels(5, ranges=ranges)(dict(img_path=str(tmp_path / 'a.npy')))
    low, top = np.array(ranges or (0, np.iinfo(dtype).max), dtype=np.float64).T
    assert results['img'].dtype == np.float32
    assert results['ori_shape'] == (30, 40)
    np.testing.assert_allclose(results['img'], scaled(image, low, top), atol=1e-4)


def test_differences_of_large_integers_are_kept():
    image = FIVE.astype(np.uint32) + 2**31  # float32 would round to multiples of 256
    channels = ChannelFormat(5, ranges=(2**31, 2**31 + 4095))
    np.testing.assert_allclose(channels.load(npy(image)), scaled(FIVE, 0, 4095), atol=1e-4)


def test_percentiles_of_each_image_and_selected_channels(tmp_path):
    np.save(tmp_path / 'a.npy', FIVE)
    results = LoadChannels(5, select=[4, 0], percentiles=[2, 95])(dict(img_path=str(tmp_path / 'a.npy')))
    chosen = FIVE[..., [4, 0]]
    low, high = np.percentile(chosen, [2, 95], axis=(0, 1))
    np.testing.assert_allclose(results['img'], scaled(chosen, low, high), atol=1e-4)
    constant = ChannelFormat(1, percentiles=(1, 99))
    flat = np.full((4, 4, 1), 7, dtype=np.uint16)
    assert not constant.scale(flat, constant.limits(flat)).any()


def test_the_crop_that_the_network_gets(tmp_path):
    """Box and flip are those of other images; the values those of Pillow's bicubic resizing of floats."""
    (tmp_path / 'a.tif').write_bytes(tiff(FIVE))
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((30, 40, 3), np.uint8))
    settings = dict(number=5, ranges=[0, 4095])
    step, colors = ReadCrop(CROP, FLIP, planes=True, channels=settings), ReadCrop(CROP, FLIP)
    mean, std = [100.0, 90, 80, 70, 60], [50.0, 40, 30, 20, 10]
    preprocessor = MODELS.build(dict(type='PretrainPreprocessor', mean=mean, std=std))
    flips = set()
    for seed in range(4):
        np.random.seed(seed)
        found, after = step(dict(img_path=str(tmp_path / 'a.tif'))), np.random.random()
        np.random.seed(seed)
        assert colors(dict(img_path=str(tmp_path / 'a.png')))['flip'] == found['flip']
        assert np.random.random() == after
        np.random.seed(seed)
        (top, left, height, width), flipped = step.draw((30, 40), {})
        part = scaled(FIVE, 0, 4095)[top : top + height, left : left + width].astype(np.float32)
        planes = [Image.fromarray(part[..., c]).resize((16, 16), Image.Resampling.BICUBIC) for c in range(5)]
        truth = np.stack([np.asarray(plane)[:, :: -1 if flipped else 1] for plane in planes]).clip(0, 255)
        assert found['img'].dtype == torch.float32
        np.testing.assert_allclose(found['img'].numpy(), truth, atol=0.01)
        batch = preprocessor(dict(inputs=found['img'][None], data_samples=None))['inputs']
        expected = (truth - np.reshape(mean, (5, 1, 1))) / np.reshape(std, (5, 1, 1))
        np.testing.assert_allclose(batch[0].numpy(), expected, atol=1e-3)
        flips.add(flipped)
        array = ReadCrop(CROP, FLIP, channels=settings)
        np.random.seed(seed)
        assert np.array_equal(array(dict(img_path=str(tmp_path / 'a.tif')))['img'].transpose(2, 0, 1), found['img'])
    assert flips == {True, False}


def test_the_shorter_edge_in_an_evaluation():
    image = scaled(FIVE, 0, 4095).astype(np.float32)
    results = ResizeEdgeOfFloats(scale=15, backend='pillow', interpolation='bicubic')(dict(img=image))
    plane = np.asarray(Image.fromarray(image[..., 3]).resize((20, 15), Image.Resampling.BICUBIC))
    assert results['img_shape'] == (15, 20)
    np.testing.assert_allclose(results['img'][..., 3], plane.clip(0, 255), atol=0.01)
    assert results['scale_factor'] == (0.5, 0.5)


@pytest.mark.parametrize(
    ('data', 'settings', 'message'),
    [
        (npy(FIVE), dict(axis='first'), r"a.npy has 30 channels .*set image_channels.axis='last'"),
        (npy(FIVE.transpose(2, 0, 1)), {}, r"has 40 channels .*set image_channels.axis='first'"),
        (png(THREE), {}, r'has 3 channels .*not 5: correct image_channels.number'),
        (npy(np.zeros((2, 3, 4, 5))), {}, r'is an array \(2, 3, 4, 5\)'),
        (npy(pixels(dtype='float32')), {}, 'has float32 values, which have no range of their own: set '),
        (npy(np.where(FIVE > 4000, np.nan, FIVE)), {}, 'has NaN or infinity in channel'),
        (npy(FIVE.astype(complex)), {}, 'has values of type complex128'),
        (npy(FIVE)[:500], {}, 'cannot be decoded as a NumPy array'),
        (tiff(FIVE)[:3000], {}, 'cannot be decoded as TIFF'),
        (tiff(FIVE, compression='zlib')[:-2000], {}, 'a.npy '),
        (LZW_OF_TWO_PAGES, {}, r'cannot be decoded as TIFF: .*pip install imagecodecs'),
        (b'', {}, 'cannot be decoded as an image'),
        (b'no image', {}, 'cannot be decoded as an image'),
    ],
)
def test_a_file_that_does_not_fit_is_named(data, settings, message, tmp_path):
    (tmp_path / 'a.npy').write_bytes(data)
    for step in (LoadChannels(5, **settings), ReadCrop(CROP, channels=dict(number=5, **settings))):
        with pytest.raises(ValueError, match=message):
            step(dict(img_path=str(tmp_path / 'a.npy')))


@pytest.mark.parametrize(
    ('data', 'number'),
    [
        (lzw(BYTES), 4),  # OpenCV multiplies colors by alpha
        (lzw(BYTES[..., :2]), 2),
        (lzw(BYTES[..., :2]), 1),  # OpenCV leaves out alpha
        (lzw(BYTES[..., :3], t274=3), 3),  # turned by 180 degrees
        (lzw(ONE[..., 0], t274=6), 1),
        (lzw(BYTES[..., 0], t262=0), 1),  # 0 is white
        (lzw(Image.fromarray(BYTES[..., :3]).quantize(16)), 3),
        (lzw(Image.fromarray(BYTES[..., :3]).convert('CMYK')), 4),
        (lzw(Image.fromarray(BYTES[..., 0] > 99)), 1),
    ],
)
def test_no_value_is_changed_on_reading(data, number):
    """Compressed files that tifffile cannot read and OpenCV would change."""
    with pytest.raises(ValueError, match='LZW.* pip install imagecodecs'):
        ChannelFormat(number).read(data)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(number=0), 'image_channels.number=0'),
        (dict(axis='channels_first'), 'axis='),
        (dict(select=[0, 5]), '0 to 4'),
        (dict(select=3), 'select=3: the channels of a file are 0 to 4'),
        (dict(select=[]), '0 to 4'),
        (dict(ranges=[0, 1], percentiles=[1, 99]), 'leave one out'),
        (dict(ranges=[1, 1]), 'ranges='),
        (dict(ranges=[[0, 1]] * 4), 'each of the 5 used channels'),
        (dict(ranges=4095), r'ranges=4095: give \(low, high\)'),
        (dict(ranges=[]), r'ranges=\(\): give \(low, high\)'),
        (dict(ranges=['0', '4095']), r"ranges=\('0', '4095'\): give \(low, high\)"),
        (dict(number=2, ranges=[[0, 1], 5]), r'ranges=\(\(0, 1\), 5\): give .* each of the 2 used channels'),
        (dict(number=2, ranges=[0, [1, 2]]), 'each of the 2 used channels'),
        (dict(percentiles=[99, 1]), 'percentiles='),
        (dict(percentiles=1), r'percentiles=1: give \(low, high\) within 0 and 100'),
        (dict(percentiles=[1, 101]), 'percentiles='),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        ChannelFormat(**dict(number=5) | settings)


def test_the_gpu_does_not_decode_channels():
    with pytest.raises(ValueError, match='reader=cpu'):
        ReadCrop(CROP, mode='gpu', channels=dict(number=5))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(ranges=[0, 4095]), None),
        (dict(percentiles=[1, 99]), None),
        ({}, r'uint16 values 0 to 4,095 are read as 0 to 15 of 255, and .*set image_channels.ranges'),
        (dict(ranges=[0, 1]), r'100 % of its uint16 values, 0 to 4,095, lie outside of image_channels.ranges'),
        (dict(axis='first'), "has 30 channels .* set image_channels.axis='last'"),
    ],
)
def test_values_of_a_data_set_are_judged(settings, message, tmp_path):
    for number in range(3):
        (tmp_path / f'{number}.tif').write_bytes(tiff(FIVE))
    dataset = ImageFiles(str(tmp_path), pipeline=[dict(type='LoadChannels', number=5, **settings)])
    if message is None:
        check_values(dataset)
        return
    with pytest.raises(DataFault, match=message):
        check_values(dataset)


def test_dark_images_of_8_bits_are_judged_too(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(pixels(1, 'uint8', 40)))
    dataset = ImageFiles(str(tmp_path), pipeline=[dict(type='LoadChannels', number=1)])
    with pytest.raises(DataFault, match='uint8 values 0 to 40 are read as 0 to 40 of 255.*set image_channels.ranges'):
        check_values(dataset)
