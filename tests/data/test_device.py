"""DeviceStage on the CPU gives the images of ReadCrop and replaces broken files; tests/gpu tests it on a GPU."""

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.io import decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from bootmae.data import device
from bootmae.data.device import DeviceStage, collate_encoded, crop_and_resize
from bootmae.data.images import ImageFiles
from bootmae.data.samples import SeededSamples, UnreadableSample

SIZE = 32


def picture(seed: int, kind: str = 'JPEG', mode: str = 'RGB', **options) -> bytes:
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((9, 10, 1))) + rng.integers(-9, 9, (54, 80, 3))
    file = io.BytesIO()
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def undecodable(data: bytes) -> bytes:
    """A complete file with a valid header and an invalid Huffman table."""
    place = data.index(b'\xff\xc4') + 5
    return data[:place] + b'\xff' * 16 + data[place + 16 :]


FILES = {
    '0.jpg': picture(0, subsampling=0),
    '1.jpg': picture(1, subsampling=2),
    '2.jpg': picture(2, mode='L'),
    '3.jpg': picture(3, progressive=True),
    '4.png': picture(4, 'PNG'),
    '5.jpg': picture(5),
    '6.jpg': picture(6),
}


def samples(folder: Path, files: dict[str, bytes], mode: str, **kwargs) -> SeededSamples:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    read = dict(type='ReadCrop', crop=dict(scale=SIZE, crop_ratio_range=(0.2, 1.0)), flip=dict(prob=0.5), mode=mode)
    return SeededSamples(
        ImageFiles(str(folder), pipeline=[read, dict(type='PackInputs', algorithm_keys=['crop_box'])]), **kwargs
    )


def staged(data: SeededSamples, keys: Iterable[int], collate=collate_encoded, workers: int = 0) -> torch.Tensor:
    stage = DeviceStage(SIZE, 'cpu', data)
    loader = DataLoader(data, batch_size=5, sampler=keys, collate_fn=collate, num_workers=workers)
    return torch.cat([stage(batch)['inputs'] for batch in loader])


def read(data: SeededSamples, keys: Iterable[int]) -> torch.Tensor:
    return torch.stack([data[key]['inputs'] for key in keys])


def assert_same(images: torch.Tensor, expected: torch.Tensor):
    """Up to the rounding of two builds of libjpeg, that of torchvision and that of OpenCV."""
    difference = (images.int() - expected).abs().float()
    assert difference.max() <= 3
    assert difference.mean() < 0.1


@pytest.mark.parametrize('collate, workers', [(collate_encoded, 0), (collate_encoded, 1), (pseudo_collate, 0)])
def test_the_images_of_readcrop(tmp_path, collate, workers, monkeypatch):
    keys = range(2 * len(FILES))
    expected = read(samples(tmp_path / 'a', FILES, 'cpu'), keys)
    data = samples(tmp_path / 'a', FILES, 'gpu')
    assert sum(data[key]['inputs'].ndim == 1 for key in range(len(FILES))) == 4  # baseline and of three colors
    assert_same(whole := staged(data, keys, collate, workers), expected)
    monkeypatch.setattr(device, 'BYTES_AT_ONCE', 3000)
    monkeypatch.setattr(device, 'RESIZED_AT_ONCE', 2)
    assert staged(data, keys, collate).equal(whole)


def test_a_batch_keeps_its_order_and_labels(tmp_path):
    data = samples(tmp_path / 'a', FILES, 'gpu')
    batch = collate_encoded([data[key] for key in range(len(FILES))])
    sent = ['0.jpg', '1.jpg', '5.jpg', '6.jpg']
    assert batch['inputs']['lengths'].tolist() == [len(FILES[name]) if name in sent else 0 for name in FILES]
    assert batch['inputs']['data'].numpy().tobytes() == b''.join(FILES[name] for name in sent)
    assert batch['inputs']['finished'].shape == (3, 3, SIZE, SIZE)
    out = DeviceStage(SIZE, 'cpu', data)(batch)
    assert [Path(sample.img_path).name for sample in out['data_samples']] == list(FILES)
    assert not any('crop_box' in sample for sample in out['data_samples'])  # nothing to copy to the device


def test_resizing_as_torchvision_does_it_on_a_gpu():
    """It rounds once in float32, to even; the CPU rounds and clamps after each of two passes."""
    images = [decode_jpeg(torch.frombuffer(bytearray(picture(seed)), dtype=torch.uint8)) for seed in range(4)]
    boxes = [[0, 0, 54, 80, 0], [3, 5, 20, 20, 1], [1, 2, SIZE, SIZE, 1], [0, 0, 10, 70, 0]]
    for image, (*box, flipped), row in zip(images, boxes, crop_and_resize(images, boxes, (SIZE, SIZE), exact=True)):
        expected = F.resized_crop(image.double(), *box, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)
        expected = expected.clamp(0, 255).round().flip(0)  # bicubic does go beyond the range here
        difference = (expected.flip(2) if flipped else expected) - row
        assert difference.abs().max() <= 1  # next to a half
        assert (difference == 0).double().mean() > 0.999
    images = [image // 2 + 64 for image in images]
    once, twice = (crop_and_resize(images, boxes, (SIZE, SIZE), exact=exact) for exact in (True, False))
    assert (once.int() - twice).abs().max() == 1


class Picky:
    """A decoder that fails on batches with certain files and does not name them."""

    def __init__(self, *refused: bytes):
        self.refused, self.sizes = refused, []

    def __call__(self, files, mode, device):
        self.sizes.append(len(files))
        if any(file.numpy().tobytes() in self.refused for file in files):
            raise RuntimeError('Error while decoding JPEG images: Failed to decode batch: 8')
        return decode_jpeg(files, mode=mode, device='cpu')


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    messages = []
    monkeypatch.setattr(device, 'print_log', lambda message, **kwargs: messages.append(message))
    return messages


def test_what_the_devices_decoder_refuses_is_decoded_on_the_cpu(tmp_path, warned):
    files = {f'{i}.jpg': picture(i) for i in range(8)}
    data, decode = samples(tmp_path / 'a', files, 'gpu'), Picky(files['5.jpg'])
    stage = DeviceStage(SIZE, 'cpu', data, decode=decode)
    out = stage(collate_encoded([data[key] for key in range(8)]))
    assert_same(out['inputs'], read(samples(tmp_path / 'a', files, 'cpu'), range(8)))
    assert stage.on_cpu == 1
    assert decode.sizes == [8, 4, 4, 2, 1, 1, 2]
    assert data.take_reports() == []
    stage(collate_encoded([data[5], data[6]]))
    assert warned == [
        'reader=gpu: the decoder of cpu refuses a file (RuntimeError: Error while decoding JPEG images: Failed to '
        'decode batch: 8); the CPU decodes such files'
    ]


def test_a_decoder_that_refuses_a_whole_batch_is_not_used_again(tmp_path, warned):
    files = {f'{i}.jpg': picture(i) for i in range(9)}
    data, decode = samples(tmp_path / 'a', files, 'gpu'), Picky(*files.values())
    stage, expected = DeviceStage(SIZE, 'cpu', data, decode=decode), samples(tmp_path / 'a', files, 'cpu')
    stage(collate_encoded([data[key] for key in range(4)]))  # so few may all be unusual
    assert (len(decode.sizes), len(warned)) == (7, 1)
    for _ in range(2):
        out = stage(collate_encoded([data[key] for key in range(9)]))
        assert_same(out['inputs'], read(expected, range(9)))
    assert len(decode.sizes) == 7 + 17
    assert warned[1:] == [
        'reader=gpu: the decoder of cpu refuses a whole batch of 9 files, so this process decodes all on the CPU, '
        'which is slow: use reader=cpu'
    ]


@pytest.mark.parametrize('workers', [0, 1])
def test_broken_files_are_replaced_as_those_that_cannot_be_read(tmp_path, workers):
    broken = [0, 2, 5]  # so many that replacements are broken too
    cut = picture(9)[:-9] + bytes(9)  # found by the worker
    files = {f'{i}.jpg': undecodable(picture(i)) if i in broken else picture(i) for i in range(6)} | {'6.jpg': cut}
    keys = range(4 * len(files))
    expected = samples(tmp_path / 'a', files, 'cpu', seed=3)
    images = read(expected, keys)
    data = samples(tmp_path / 'a', files, 'gpu', seed=3)
    assert_same(staged(data, keys, workers=workers), images)
    found = dict(data.take_reports())
    assert found.keys() == dict(expected.take_reports()).keys() == {str(tmp_path / f'a/{i}.jpg') for i in (*broken, 6)}
    assert 'Huffman' in found[str(tmp_path / 'a/0.jpg')]
    assert data.take_reports() == []


def test_the_data_sample_of_a_replacement(tmp_path):
    data = samples(tmp_path / 'a', {'0.jpg': undecodable(picture(0)), '1.jpg': picture(1)}, 'gpu')
    out = DeviceStage(SIZE, 'cpu', data)(collate_encoded([data[0], data[1]]))
    assert [Path(sample.img_path).name for sample in out['data_samples']] == ['1.jpg', '1.jpg']


def test_broken_files_that_may_not_be_replaced(tmp_path):
    files = {'0.jpg': undecodable(picture(0)), '1.jpg': picture(1)}
    strict = samples(tmp_path / 'a', files, 'gpu', bad='raise')
    with pytest.raises(UnreadableSample, match=r'a/0.jpg cannot be read \(RuntimeError: .*Huffman'):
        staged(strict, [1, 0])
    with pytest.raises(ValueError, match=r'a/0.jpg cannot be decoded \(.*Huffman.*verify_data'):
        DeviceStage(SIZE, 'cpu')(collate_encoded([strict[0]]))
    only = samples(tmp_path / 'b', {'0.jpg': files['0.jpg']}, 'gpu')
    with pytest.raises(UnreadableSample, match=r'b/0.jpg cannot be read'):
        staged(only, [0])


def test_other_batches_are_copied_as_they_are():
    stage, image = DeviceStage(SIZE, 'cpu'), torch.rand(2, 3, 4, 4)
    assert stage(dict(inputs=image, data_samples=['a', 'b'])) == dict(inputs=image, data_samples=['a', 'b'])
    views = stage(dict(inputs=[image, image + 1]))
    assert views.keys() == {'inputs'}
    assert views['inputs'][1].equal(image + 1)


def test_devices_without_a_decoder_are_refused():
    with pytest.raises(ValueError, match=r"device='mps'.*reader=cpu"):
        DeviceStage(SIZE, 'mps')


def test_streams(tmp_path, monkeypatch):
    """No image is decoded into memory that is still being read, and none is used before it is complete."""
    events = []

    class Stream:
        def synchronize(self):
            events.append('settle')

        def wait_stream(self, other):
            events.append('caller waits')

    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: events.append('aside') or contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: Stream())
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: events.append('settle all'))
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda tensor, stream: events.append(tuple(tensor.shape)))
    monkeypatch.setattr(device, 'crop_and_resize', lambda *args: events.append('resize') or crop_and_resize(*args))
    files = {f'{i}.jpg': picture(i) for i in range(3)}
    data, decode = samples(tmp_path / 'a', files, 'gpu'), Picky(files['2.jpg'])
    stage = DeviceStage(SIZE, 'cpu', data, lambda *args, **kwargs: events.append('decode') or decode(*args, **kwargs))
    stage.stream = Stream()
    batch = collate_encoded([data[0], data[1]])
    stage(batch)
    end = ['resize', 'caller waits', (2, 3, SIZE, SIZE)]
    assert events == ['aside', 'settle', 'decode', *end]
    events.clear()
    stage(collate_encoded([data[0], data[2]]))
    refused = ['settle', 'decode', 'settle all']
    assert events == ['aside', *refused, 'settle', 'decode', *refused, *end]
    events.clear()
    monkeypatch.setattr(device, 'BYTES_AT_ONCE', 1)
    stage(batch)
    assert events == ['aside', 'settle', 'decode', 'resize', 'settle', 'decode', *end]
