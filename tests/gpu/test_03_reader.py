"""``reader='gpu'``: images decoded by nvJPEG are those of the CPU reader, whatever the file; and nvJPEG's hazards.

``BOOTMAE_TEST_IMAGES`` names a folder or tar archive of photographs, such as some of ImageNet; without it those of
installed packages are written as JPEG files.
"""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from PIL import Image
from rehearsal import DEVICE, REHEARSED, new_stream, on_stream, queue_a_late_write, synchronize, toy
from torchvision.io import ImageReadMode, decode_jpeg

from bootmae.commands.train import train
from bootmae.data.device import DeviceStage, collate_encoded
from bootmae.data.embedded import PHOTOS, photo
from bootmae.data.images import ImageFiles
from bootmae.data.jpeg import parse_header
from bootmae.data.samples import SeededSamples

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'pretrain' / 'bootmae_debug.py'
SIZE = toy(224, 64)
FILES, BATCH = toy(256, 24), toy(64, 8)
# Mean absolute differences from the CPU reader, in levels of 255. nvJPEG repeats the color values of files with
# subsampled color where the CPU interpolates (docs/speed.md): 0.2 to 0.5 are expected of many files, 1.8 of the worst.
MEAN_TOLERANCE, IMAGE_TOLERANCE = 1.0, 4.0
# Of gray squares under a smooth color, where that counts little. With red and blue exchanged it would be 40.
PATTERN_TOLERANCE = 1.5


def pattern(seed: int, mode: str = 'RGB', size: tuple[int, int] = (54, 80), kind: str = 'JPEG', **options) -> bytes:
    """A file (height, width) of random gray squares under a smooth cast: red from the left, blue from the right."""
    (height, width), rng = size, np.random.default_rng(seed)
    cell = height // 6 + 1, width // 8 + 1
    gray = np.kron(rng.integers(60, 190, (6, 8)), np.ones(cell))[:height, :width]
    across, down = np.linspace(-60, 60, width), np.linspace(-40, 40, height)[:, None]
    pixels = np.stack((gray - across, gray + down, gray + across), axis=2)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def undecodable(data: bytes) -> bytes:
    """A whole file with a sound header, but with a Huffman table that cannot be."""
    place = data.index(b'\xff\xc4') + 5
    return data[:place] + b'\xff' * 16 + data[place + 16 :]


KINDS = {  # file, whether the GPU's decoder gets it
    'baseline_444': (pattern(0, subsampling=0), True),
    'baseline_422': (pattern(1, subsampling=1), True),
    'baseline_420': (pattern(2, subsampling=2), True),
    'gray': (pattern(3, 'L'), False),
    'cmyk': (pattern(4, 'CMYK'), False),
    'progressive': (pattern(5, progressive=True), False),
    'png': (pattern(6, kind='PNG'), False),
    'one_pixel': (pattern(7, size=(1, 1)), True),
    'one_row': (pattern(8, size=(1, 80)), True),
    'twelve_megapixels': (pattern(9, size=(toy(3000, 300), toy(4000, 400))), True),
}


def samples(roots: Path | str, mode: str, **kwargs) -> SeededSamples:
    init_default_scope('mmpretrain')
    read = dict(type='ReadCrop', crop=dict(scale=SIZE, crop_ratio_range=(0.2, 1.0)), flip=dict(prob=0.5), mode=mode)
    packed = [read, dict(type='PackInputs', algorithm_keys=['crop_box'])]
    return SeededSamples(ImageFiles(str(roots), limit=FILES, pipeline=packed), **kwargs)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def both(roots: Path | str) -> tuple[torch.Tensor, torch.Tensor, DeviceStage]:
    """All images of the GPU reader and of the CPU reader (B, 3, S, S), and the stage of the former."""
    ours, theirs = samples(roots, 'gpu'), samples(roots, 'cpu')
    stage, found = DeviceStage(SIZE, DEVICE, ours), []
    for start in range(0, len(ours), BATCH):
        out = stage(collate_encoded([ours[key] for key in range(start, min(start + BATCH, len(ours)))]))['inputs']
        assert out.device.type == DEVICE
        found.append(out.cpu())
    print(f'{len(ours)} files, {stage.on_cpu} of them refused by the decoder and decoded on the CPU')
    return torch.cat(found), torch.stack([theirs[key]['inputs'] for key in range(len(theirs))]), stage


def errors_of(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of each image (B,)."""
    return (ours.int() - theirs.int()).abs().float().mean(dim=(1, 2, 3))


@pytest.fixture(scope='module')
def photographs(tmp_path_factory) -> str:
    """Folder or archive of photographs."""
    if given := os.environ.get('BOOTMAE_TEST_IMAGES'):
        return given
    folder = tmp_path_factory.mktemp('photographs')
    for name in list(PHOTOS)[: toy(len(PHOTOS), 6)]:
        picture = Image.fromarray(photo(name))
        picture.thumbnail((toy(1000, 250), toy(1000, 250)))
        for subsampling in (0, 2):
            picture.save(folder / f'{name}_{subsampling}.jpg', quality=92, subsampling=subsampling)
    return str(folder)


def test_photographs(device, photographs):
    ours, theirs, stage = both(photographs)
    errors = errors_of(ours, theirs)
    print(
        f'difference from the CPU reader: mean {errors.mean():.3f}, of the worst image {errors.max():.3f}, largest '
        f'{(ours.int() - theirs.int()).abs().max()}'
    )
    assert stage.samples.take_reports() == []
    assert stage.on_cpu <= len(ours) / 100  # or torchvision has no nvJPEG
    assert errors.mean() <= MEAN_TOLERANCE
    assert errors.max() <= IMAGE_TOLERANCE


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_file(device, tmp_path, kind):
    content, for_gpu = KINDS[kind]
    data = samples(write(tmp_path / 'files', {f'{i}.jpg': content for i in range(3)}), 'gpu')
    assert (data[0]['inputs'].ndim == 1) == for_gpu
    ours, theirs, stage = both(tmp_path / 'files')
    errors = errors_of(ours, theirs)
    print(f'{kind}: difference from the CPU reader {errors.tolist()}')
    assert errors.max() <= PATTERN_TOLERANCE
    assert stage.samples.take_reports() == []
    assert stage.on_cpu == 0 or kind.startswith('one_')
    assert kind.startswith('one_pixel') or ours.float().std() > 10


def as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.fixture
def large() -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of a file, and its image (3, H, W), decoded when nothing else happens."""
    data = as_tensor(pattern(0, size=(512, 512), subsampling=0))
    image = decode_jpeg([data], mode=ImageReadMode.RGB, device=DEVICE)[0]
    synchronize()
    return data, image


def test_the_stage_waits_for_memory_in_use(device, large):
    data, expected = large
    sample = DataSample()
    sample.set_field(np.array([0, 0, 512, 512, 0]), 'crop_box')
    stage = DeviceStage(512, device)
    queue_a_late_write(stage.stream, expected.shape)
    images = stage(collate_encoded([dict(inputs=data, data_samples=sample)]))['inputs']
    synchronize()
    assert torch.equal(images[0].flip(0), expected)


def test_torchvision_does_not_wait_for_memory_in_use(device, large):
    """The reason why the stage does. Skipped if no harm was done: a later torchvision may wait."""
    data, expected = large
    stream = new_stream()
    queue_a_late_write(stream, expected.shape)
    with on_stream(stream):
        image = decode_jpeg([data], mode=ImageReadMode.RGB, device=device)[0]
    synchronize()
    if not REHEARSED and torch.equal(image, expected):
        pytest.skip('decode_jpeg was not disturbed by a late write: does DeviceStage still need to wait for it?')
    assert torch.equal(image, expected) == REHEARSED


def test_a_run_reads_with_the_gpu(device, photographs, tmp_path):
    """`tools/train.py --cfg-options reader=gpu`: the losses of the CPU reader, as far as the pixels are the same."""
    losses = {}
    masks = dict(img_size=32, patch_size=4, num_masked=48, num_block=39)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(
            type='RandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'
        ),
        dict(type='RandomFlip', prob=0.5),
        dict(type='DrawMask', **masks),
        dict(type='PackInputs', algorithm_keys=['ids_shuffle']),
    ]
    for reader in ('gpu', 'cpu'):
        runner = train(
            str(CONFIG),
            str(tmp_path / reader),
            {
                'experiment_name': f'gpu_reader_{reader}',
                'log_level': 'WARNING',
                'visualizer.vis_backends': [],
                'reader': reader,
                'reader_device': device,
                'train_cfg.max_epochs': 1,
                'train_dataloader.batch_size': 8,
                'auto_scale_lr.base_batch_size': 8,
                'train_dataloader.dataset': dict(
                    _delete_=True, type='ImageFiles', roots=photographs, limit=toy(64, 8), pipeline=pipeline
                ),
            },
        )
        losses[reader] = runner.message_hub.get_scalar('train/loss').data[0].tolist()
        assert (runner.train_loop.stage is not None) == (reader == 'gpu' or not REHEARSED)
    print(losses)
    assert losses['gpu'] == pytest.approx(losses['cpu'], rel=0.05)


def test_the_photographs_are_for_the_gpu(photographs):
    """Or the comparison would be of the CPU with itself."""
    if not Path(photographs).is_dir():
        pytest.skip('an archive was given: its files are not looked at')
    headers = [parse_header(path.read_bytes()) for path in sorted(Path(photographs).rglob('*.*'))[:64]]
    assert sum(header is not None and header.for_gpu for header in headers) > len(headers) / 2


def test_broken_files_are_replaced_as_by_the_cpu_reader(device, tmp_path):
    """A file that is cut off is found by the worker, a damaged one by the decoder."""
    whole = {f'{i}.jpg': pattern(i, subsampling=0) for i in range(6)}
    cut = whole['1.jpg'][: len(whole['1.jpg']) // 2]
    folder = write(tmp_path / 'files', whole | {'1.jpg': cut, '3.jpg': undecodable(whole['3.jpg'])})
    ours, theirs, stage = both(folder)
    print(f'difference from the CPU reader {errors_of(ours, theirs).tolist()}')
    assert errors_of(ours, theirs).max() <= PATTERN_TOLERANCE
    assert sorted(Path(path).name for path, _ in stage.samples.take_reports()) == ['1.jpg', '3.jpg']


def test_one_bad_file_fails_its_batch(device):
    """torchvision's decoder, which does not say which one it was; and it goes on working afterwards."""
    good, bad = as_tensor(pattern(0)), as_tensor(undecodable(pattern(1)))
    before = decode_jpeg([good], mode=ImageReadMode.RGB, device=device)[0]
    with pytest.raises(RuntimeError) as caught:
        decode_jpeg([good, bad, good], mode=ImageReadMode.RGB, device=device)
    print(caught.value)
    synchronize()
    assert torch.equal(decode_jpeg([good], mode=ImageReadMode.RGB, device=device)[0], before)
