"""Unusual files are read correctly and broken ones replaced and reported, in the pipeline for small data."""

import contextlib
import io
import os
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from bootmae.config.load import load_config
from bootmae.data import images
from bootmae.data.jpeg import check_whole, is_whole
from bootmae.data.samples import SeededSamples, UnreadableSample

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'pretrain' / 'bootmae_small_data.py'
SIZE, PATCH, GOOD = 32, 4, 200
DIGITS = load_digits().images


def digit(number: int, side: int = SIZE) -> np.ndarray:
    """A digit in false colors, RGB uint8 (side, side, 3)."""
    gray = cv2.resize((DIGITS[number] * 15).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    return np.stack([gray, 255 - gray, np.full_like(gray, 60)], -1)


def encoded(picture: np.ndarray | Image.Image, kind: str = 'JPEG', **options) -> bytes:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    picture.save(buffer, kind, **(dict(quality=95, subsampling=0) if kind == 'JPEG' else {}) | options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_thumbnail(picture: np.ndarray) -> bytes:
    """A JPEG file with a thumbnail in its header, as cameras write it."""
    small = b'Exif\0\0' + encoded(picture[::2, ::2])
    data = encoded(picture)
    return data[:2] + b'\xff\xe1' + (len(small) + 2).to_bytes(2, 'big') + small + data[2:]


def claims(side: int, kind: str) -> bytes:
    """A tiny file whose header claims side x side pixels."""
    data = encoded(PICTURE, kind)
    if kind == 'JPEG':
        place = data.index(b'\xff\xc0') + 5
        return data[:place] + side.to_bytes(2, 'big') * 2 + data[place + 4 :]
    head = b'IHDR' + side.to_bytes(4, 'big') * 2 + data[24:29]
    return data[:12] + head + zlib.crc32(head).to_bytes(4, 'big') + data[33:]


def zeros_from(data: bytes, share: float) -> bytes:
    cut = int(share * len(data))
    return data[:cut] + bytes(len(data) - cut)


PICTURE = digit(3)
LARGE = np.clip(digit(3, 256) + np.random.RandomState(0).normal(0, 20, (256, 256, 3)), 0, 255).astype(np.uint8)
JPEG, PNG, WHOLE, PROGRESSIVE = (
    encoded(PICTURE),
    encoded(PICTURE, 'PNG'),
    encoded(LARGE),
    encoded(LARGE, progressive=True),
)
DEEP = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
# name: (bytes, expected image, tolerance of a pixel)
READ = {
    'plain.jpg': (JPEG, PICTURE, 12),
    'progressive.jpg': (encoded(PICTURE, progressive=True), PICTURE, 12),
    'cmyk.jpg': (encoded(Image.fromarray(PICTURE).convert('CMYK')), PICTURE, 16),
    'gray.jpg': (encoded(PICTURE[..., 0]), PICTURE[..., [0, 0, 0]], 12),
    'deep.png': (encoded(DEEP, 'PNG'), (DEEP[..., None] / 257).repeat(3, -1), 1),
    'deep_colors.png': (
        cv2.imencode('.png', DEEP[..., None] // np.array([1, 2, 4], np.uint16))[1].tobytes(),
        DEEP[..., None] / 257 / [4, 2, 1],
        1,
    ),
    'palette.png': (
        encoded(Image.fromarray(PICTURE).quantize(), 'PNG'),
        np.asarray(Image.fromarray(PICTURE).quantize().convert('RGB')),
        0,
    ),
    'alpha.png': (encoded(np.concatenate([PICTURE, PICTURE[..., :1]], -1), 'PNG'), PICTURE, 0),
    'turned_6.jpg': (encoded(PICTURE, exif=turned(6)), np.rot90(PICTURE, -1), 12),
    'turned_8.jpg': (encoded(PICTURE, exif=turned(8)), np.rot90(PICTURE), 12),
    'mirrored.jpg': (encoded(PICTURE, exif=turned(2)), PICTURE[:, ::-1], 12),
    'one_pixel.jpg': (encoded(PICTURE[:1, :1]), np.broadcast_to(PICTURE[:1, :1], PICTURE.shape), 3),
    'one_pixel.png': (encoded(PICTURE[:1, :1], 'PNG'), np.broadcast_to(PICTURE[:1, :1], PICTURE.shape), 0),
    'png_named.jpg': (PNG, PICTURE, 0),
    'more_behind.jpg': (JPEG + b'made by a camera' * 20, PICTURE, 12),
    'thumbnail.jpg': (with_thumbnail(PICTURE), PICTURE, 12),
}
# name: (bytes, or None to delete the file after the scan; pattern of the reason)
BAD = {
    'empty.jpg': (b'', 'error: .*buf.empty'),
    'text.jpg': (b'<html>404 Not Found</html>', 'failed to load image'),
    'head.jpg': (JPEG[:20], 'failed to load image'),
    'half.jpg': (WHOLE[: len(WHOLE) // 2], 'failed to load image|is cut off'),
    'last_byte.jpg': (WHOLE[:-1], 'failed to load image|is cut off'),
    'half_progressive.jpg': (PROGRESSIVE[: len(PROGRESSIVE) // 2], 'failed to load image'),
    'zeros.jpg': (zeros_from(WHOLE, 0.5), 'is cut off: a JPEG file without its end'),
    'only_thumbnail.jpg': (zeros_from(with_thumbnail(LARGE), 0.7), 'is cut off'),
    'cut.png': (PNG[: len(PNG) // 2], 'failed to load image'),
    'zeros.png': (zeros_from(PNG, 0.6), 'failed to load image'),
    'flipped.png': (
        PNG[: len(PNG) // 2] + bytes([PNG[len(PNG) // 2] ^ 8]) + PNG[len(PNG) // 2 + 1 :],
        'failed to load',
    ),
    'huge.jpg': (claims(65_000, 'JPEG'), 'pixels <= CV_IO_MAX_IMAGE_PIXELS'),
    'huge.png': (claims(65_000, 'PNG'), 'pixels <= CV_IO_MAX_IMAGE_PIXELS'),
    'deleted.jpg': (None, 'FileNotFoundError: .*deleted.jpg'),
}


def data_set(folder: Path, whole: bool = False) -> dict:
    """The training set of bootmae_small_data at 32 pixels; ``whole`` turns off crop and flip."""
    config = load_config(CONFIG).train_dataloader.dataset.to_dict()
    for step in config['pipeline']:
        if step['type'] == 'RandomResizedCrop':
            step['scale'] = SIZE
            if whole:
                step.update(crop_ratio_range=(1.0, 1.0), aspect_ratio_range=(1.0, 1.0))
        elif step['type'] == 'RandomFlip' and whole:
            step['prob'] = 0.0
        elif step['type'] == 'DrawMask':
            step.update(img_size=SIZE, patch_size=PATCH, num_masked=48, num_block=39, block_area=(4, 16))
    return config | dict(roots=str(folder))


def write(folder: Path, files: dict) -> Path:
    folder.mkdir(exist_ok=True)
    for name, (data, *_) in files.items():
        (folder / name).write_bytes(JPEG if data is None else data)
    return folder


def load(samples: SeededSamples, keys, workers: int = 0) -> list[torch.Tensor]:
    return [item['inputs'] for item in DataLoader(samples, batch_size=None, sampler=list(keys), num_workers=workers)]


@pytest.fixture(scope='module')
def readable(tmp_path_factory) -> dict[str, np.ndarray]:
    """Images of all readable files after the pipeline: RGB (32, 32, 3)."""
    samples = SeededSamples(data_set(write(tmp_path_factory.mktemp('read') / 'images', READ), whole=True), bad='raise')
    return {
        Path(samples.path(k)).name: samples[k]['inputs'].numpy()[::-1].transpose(1, 2, 0) for k in range(len(samples))
    }


@pytest.mark.parametrize('name', READ)
def test_unusual_files_are_read_correctly(readable, name):
    picture, expected, tolerance = readable[name], READ[name][1], READ[name][2]
    assert picture.dtype == np.uint8
    difference = np.abs(picture.astype(float) - expected)
    assert difference.max() <= tolerance + 0.5
    assert difference.mean() <= tolerance / 2


@pytest.fixture(scope='module')
def unreadable(tmp_path_factory) -> tuple[dict, dict]:
    """Errors under ``raise`` and reports under ``skip`` by file name, for all bad files and one good file."""
    folder = write(tmp_path_factory.mktemp('bad') / 'images', BAD | {'good.jpg': (JPEG,)})
    strict = SeededSamples(data_set(folder, whole=True), bad='raise')
    lenient = SeededSamples(strict.dataset, bad='skip')
    (folder / 'deleted.jpg').unlink()
    errors, reports = {}, {}
    for k in range(len(strict)):
        name = Path(strict.path(k)).name
        try:
            strict[k]
        except ValueError as error:
            errors[name] = str(error)
        with contextlib.suppress(UnreadableSample):  # 16 bad ones in a row: there are 14 to one good
            lenient[k]
        reports |= {Path(path).name: reason for path, reason in lenient.take_reports()}
    return errors, reports


@pytest.mark.parametrize('name', BAD)
def test_bad_files_are_named_with_the_reason(unreadable, name):
    errors, reports = unreadable
    with pytest.raises(ValueError, match=rf'images/{name} cannot be read \((?s:.*){BAD[name][1]}'):
        raise ValueError(errors[name])
    with pytest.raises(ValueError, match=BAD[name][1]):
        raise ValueError(reports[name])


def test_good_files_are_not_reported(unreadable):
    errors, reports = unreadable
    assert set(errors) == set(reports) == set(BAD)


@pytest.fixture
def one(tmp_path):
    """``one(data)``: the image of a file after the pipeline, None if the file is refused."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.jpg').write_bytes(WHOLE)
    samples = SeededSamples(data_set(tmp_path / 'images', whole=True), bad='raise')

    def read(data: bytes) -> np.ndarray | None:
        (tmp_path / 'images' / 'a.jpg').write_bytes(data)
        try:
            return samples[0]['inputs'].numpy()
        except ValueError:
            return None

    return read


def test_one_line_also_from_a_worker(tmp_path):
    samples = SeededSamples(data_set(write(tmp_path / 'images', {'a.jpg': (WHOLE[:99],)})), bad='raise')
    messages = []
    for workers in (0, 1):
        with pytest.raises(UnreadableSample) as refused:
            load(samples, [0], workers)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f'{tmp_path}/images/a.jpg cannot be read (')
    assert '\n' not in messages[0]


CUTS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)


@pytest.mark.parametrize('data', [WHOLE, PROGRESSIVE], ids=['baseline', 'progressive'])
def test_no_cut_of_a_jpeg_passes(one, data):
    """The missing part is absent or replaced by zeros."""
    assert one(data) is not None
    for share in CUTS:
        assert one(data[: int(share * len(data))]) is None, share
        assert one(zeros_from(data, share)) is None, share


def test_the_decoder_alone_takes_a_cut_jpeg_for_a_whole_one(one, monkeypatch):
    """Without our check, the pipeline trains on the truncated image."""
    whole = one(WHOLE)
    monkeypatch.setattr(images, 'check_whole', lambda path: None)
    half = one(zeros_from(WHOLE, 0.5))
    assert (np.abs(half.astype(int) - whole)[:, SIZE // 2 + 2 :].max(1) > 20).any()
    assert half[:, -8:].std((1, 2)).max() < 1, 'of one color'


def test_markers(tmp_path):
    filled = JPEG[:2] + b'\xff' + JPEG[2:]  # fill byte before a marker
    for data in (WHOLE, WHOLE + b'more', with_thumbnail(LARGE), PROGRESSIVE, filled):
        assert is_whole(data)
    for data in (WHOLE[:-2], WHOLE[:-2] + bytes(9), WHOLE[:300], WHOLE[:2], b'', with_thumbnail(LARGE)[:-2]):
        assert not is_whole(data)
    (tmp_path / 'a').write_bytes(b'\xff')
    check_whole(str(tmp_path / 'a'))  # not a JPEG: for the decoder to say


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    write(tmp_path, {'a.jpg': (JPEG,)})
    write(tmp_path / 'x.jpg', {'b.jpg': (JPEG,)})
    samples = SeededSamples(data_set(tmp_path), bad='raise')
    assert sorted(Path(samples.path(k)).name for k in range(len(samples))) == ['a.jpg', 'b.jpg']


def test_a_file_that_becomes_a_folder_is_replaced(tmp_path):
    write(tmp_path, {'a.jpg': (JPEG,), 'b.jpg': (JPEG,)})
    samples = SeededSamples(data_set(tmp_path))
    assert len(samples) == 2
    (tmp_path / 'a.jpg').unlink()
    (tmp_path / 'a.jpg').mkdir()
    assert samples[0]['inputs'].shape == (3, SIZE, SIZE)
    ((path, reason),) = samples.take_reports()
    assert path == str(tmp_path / 'a.jpg')
    assert reason.startswith('IsADirectoryError')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission_is_replaced(tmp_path):
    write(tmp_path, {'a.jpg': (JPEG,), 'b.jpg': (JPEG,)})
    (tmp_path / 'a.jpg').chmod(0)
    samples = SeededSamples(data_set(tmp_path))
    assert samples[0]['inputs'].shape == (3, SIZE, SIZE)
    assert [reason.split(':')[0] for _, reason in samples.take_reports()] == ['PermissionError']


def test_a_folder_of_everything_is_read_to_its_end(tmp_path):
    """Two epochs are the same with 0 and 2 workers, and exactly the bad files are reported."""
    good = {f'{k:03}.jpg': (encoded(digit(k, 24 + k % 40)),) for k in range(GOOD)}
    folder = write(tmp_path / 'images', good | READ | BAD)
    samples = SeededSamples(data_set(folder), seed=5)
    assert len(samples) == GOOD + len(READ) + len(BAD)
    (folder / 'deleted.jpg').unlink()
    keys = range(2 * len(samples))
    alone = load(samples, keys)
    names = {Path(path).name for path, _ in samples.take_reports()}
    assert names == set(BAD)
    again = SeededSamples(samples.dataset, seed=5)
    assert all(ours.equal(theirs) for ours, theirs in zip(alone, load(again, keys, workers=2), strict=True))
    assert {Path(path).name for path, _ in again.take_reports()} == names
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match='cannot be read .FileNotFoundError'):
        samples[0]
