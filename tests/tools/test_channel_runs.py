"""Images of five channels: pretraining, resuming, k-NN, fine-tuning and UperNet by the documented commands."""

import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from calling import call_tool
from scripts import shell

from bootmae.checkpoints import read_checkpoint
from bootmae.commands import visualize
from bootmae.config.load import load_config
from bootmae.config.model import build_model
from bootmae.models.vit import PlainViT
from bootmae.results.rows import read_rows
from bootmae.transfer.backbone import TransferViT
from examples import channel_images

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PRETRAIN = CONFIGS / 'pretrain' / 'bootmae_channels_cpu.py'
FINETUNE = CONFIGS / 'cls' / 'bootmae_channels_cpu_finetune.py'
SEGMENT = CONFIGS / 'seg' / 'upernet_channels_cpu.py'
COUNT = itertools.count()
SHORT = [
    *('log_level=ERROR', 'train_dataloader.batch_size=8', 'auto_scale_lr.base_batch_size=8'),
    *('param_scheduler.warmup=0.5', 'train_cfg.max_epochs=2', 'default_hooks.checkpoint.interval=1'),
    'default_hooks.pictures=None',
]
WHOLE = ['train_dataloader.dataset.pipeline.1.crop_ratio_range=(1,1)', 'train_dataloader.dataset.pipeline.2.prob=0.0']
ARRAYS = ['image_channels.axis=first', 'image_channels.ranges=[0,1]']
KINDS = dict(tiff=[], npy=ARRAYS)
HALF = 127.5


def call(tool: str, *args, options=()) -> int:
    """Each run gets its own name, since mmengine keeps runs by name."""
    return call_tool(tool, *args, '--cfg-options', f'experiment_name=channels_{next(COUNT)}', *options)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """The worked example, as small as the models; images have the size of the crops."""
    root = tmp_path_factory.mktemp('channels')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_images, 'SIZE', 64)
        channel_images.write(root, train=3, val=1)
    return root


@pytest.fixture
def seen(monkeypatch) -> list[torch.Tensor]:
    """Inputs of all encoders."""
    inputs = []
    for kind, name in ((PlainViT, 'check_images'), (TransferViT, 'forward')):
        plain = getattr(kind, name)

        def spy(self, images, *args, plain=plain, **kwargs):
            inputs.append(images.detach().clone())
            return plain(self, images, *args, **kwargs)

        monkeypatch.setattr(kind, name, spy)
    return inputs


@pytest.fixture(scope='module')
def pretrained(data, tmp_path_factory) -> dict[str, Path]:
    """Work directories of pretraining on both kinds of files, with k-NN on their labels during the training."""
    runs = {}
    for kind, options in KINDS.items():
        runs[kind] = tmp_path_factory.mktemp(kind)
        where = ('--data', data / kind, '--work-dir', runs[kind])
        probe = f'default_hooks.probe.folder={data / kind}'
        assert call('train', PRETRAIN, *where, options=[*SHORT, *WHOLE, *options, probe]) == 0
    return runs


def truth(data: Path, kind: str, part: str) -> list[np.ndarray]:
    """What the network should get of each image of a folder with classes."""
    return truth_of(sorted((data / kind / part).glob('*/*')))


def truth_of(paths: list[Path]) -> list[np.ndarray]:
    """What the network should get of each file (C, H, W), by plain arithmetic."""
    shares = (
        np.load(path) if path.suffix == '.npy' else tifffile.imread(path).astype(np.float64).transpose(2, 0, 1) / 4095
        for path in paths
    )
    return [(255 * share - HALF) / HALF for share in shares]


def number_of(image: np.ndarray, images: list[np.ndarray]) -> int:
    """The number of the image that equals another one."""
    return next(k for k, other in enumerate(images) if np.allclose(image, other, atol=1e-5))


@pytest.mark.parametrize('kind', KINDS)
def test_pretraining_sees_the_values_of_the_files(kind, data, seen, tmp_path):
    options = [*SHORT, *WHOLE, *KINDS[kind], 'train_cfg.max_epochs=1']
    assert call('train', PRETRAIN, '--data', data / kind, '--work-dir', tmp_path / 'run', options=options) == 0
    images = truth(data, kind, 'train')
    batches = [batch for batch in seen if batch.shape == (8, 5, 64, 64)]
    numbers = [number_of(image.numpy(), images) for batch in batches for image in batch]
    assert len(set(numbers)) == len(numbers) == 16
    facts = read_checkpoint(tmp_path / 'run' / 'epoch_1.pth')['meta']['bootmae']
    assert facts['mean'] == facts['std'] == [HALF] * 5
    scale = [0, 1] if kind == 'npy' else [0, 4095]
    assert facts['image_channels'] == dict(select=[0, 1, 2, 3, 4], ranges=[scale] * 5, percentiles=None)


@pytest.mark.parametrize('kind', KINDS)
def test_a_resumed_run_ends_with_the_same_weights(kind, data, pretrained, tmp_path):
    where = ('--data', data / kind, '--work-dir', tmp_path / 'resumed', '--resume', pretrained[kind] / 'epoch_1.pth')
    assert call('train', PRETRAIN, *where, options=[*SHORT, *WHOLE, *KINDS[kind]]) == 0
    ours, theirs = (
        read_checkpoint(folder / 'epoch_2.pth')['state_dict'] for folder in (tmp_path / 'resumed', pretrained[kind])
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert ours['backbone.patch_embed.proj.weight'].shape == (64, 5, 8, 8)


def weights(folder: Path, number: int = 2) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / f'epoch_{number}.pth')['state_dict']


def test_workers_and_archives_train_alike(data, pretrained, tmp_path):
    """Bit for bit. The images of an archive are read in the order of their names, like files."""
    with tarfile.open(tmp_path / 'train.tar', 'w') as archive:
        archive.add(data / 'tiff' / 'train', '.')
    for name, folder, options in (
        ('workers', data / 'tiff', ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']),
        ('archive', tmp_path / 'train.tar', []),
    ):
        options = [*SHORT, *WHOLE, *options, f'train_dataloader.dataset.roots={folder}']
        if folder.is_dir():
            options += ['train_dataloader.dataset.split=train']
        assert call('train', PRETRAIN, '--work-dir', tmp_path / name, options=options) == 0
        expected = weights(pretrained['tiff'])
        assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / name).items()), name


@pytest.mark.slow
def test_two_processes_train_as_one(data, pretrained, tmp_path):
    options = ['--cfg-options', *SHORT, *WHOLE, 'train_dataloader.batch_size=4']
    done = shell('dist_train.sh', PRETRAIN, 2, '--data', data / 'tiff', '--work-dir', tmp_path / 'two', *options)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(weights(tmp_path / 'two'), weights(pretrained['tiff']), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('how, filters', [('repeat', [0, 1, 2, 0, 1]), ('sum', None)])
def test_pretraining_starts_from_weights_of_three_channels(how, filters, data, tmp_path):
    """The encoder and the momentum encoder begin with the adapted filters; the decoders are new."""
    given = build_model(load_config(str(PRETRAIN), {'image_channels.number': 3}))
    torch.save(dict(state_dict=given.state_dict(), meta={}), tmp_path / 'three.pth')
    options = [*SHORT, 'optim_wrapper.optimizer.lr=1e-12', 'param_scheduler.min_lr=0.0', f'adapt_channels={how}']
    where = ('--data', data / 'tiff', '--work-dir', tmp_path / 'run', '--init', tmp_path / 'three.pth')
    assert call('train', PRETRAIN, *where, options=options) == 0
    key = 'backbone.patch_embed.proj.weight'
    old, new = given.state_dict()[key], weights(tmp_path / 'run')
    if how == 'sum':
        expected = old.sum(dim=1, keepdim=True).expand(-1, 5, -1, -1) / 5
    else:
        expected = old[:, filters] / torch.tensor([2.0, 2, 1, 2, 2]).view(5, 1, 1)
    torch.testing.assert_close(new[key], expected)
    torch.testing.assert_close(new[key.replace('backbone', 'momentum')], expected)


@pytest.mark.parametrize('kind', KINDS)
def test_the_probe_of_a_run_reads_the_same_kind(kind, pretrained):
    (scalars,) = pretrained[kind].glob('*/vis_data/scalars.json')
    steps = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert [step['step'] for step in steps if 'probe/knn' in step] == [0, 2]


@pytest.mark.parametrize('kind', KINDS)
def test_knn(kind, data, pretrained, seen, tmp_path):
    where = ('--data', data / kind, '--init', pretrained[kind] / 'epoch_2.pth', '--rows', tmp_path / 'rows.csv')
    options = [*KINDS[kind], 'test_dataloader.dataset.pipeline.1.scale=64']
    assert call('knn', FINETUNE, *where, '--data-name', 'channels', options=options) == 0
    for batch, part in zip(seen, ('train', 'val'), strict=True):
        np.testing.assert_allclose(batch.numpy(), truth(data, kind, part), atol=1e-5)
    assert [row.task for row in read_rows(tmp_path / 'rows.csv')] == ['knn']


@pytest.mark.parametrize('kind', KINDS)
def test_fine_tuning(kind, data, pretrained, tmp_path):
    where = ('--data', data / kind, '--init', pretrained[kind] / 'epoch_2.pth', '--work-dir', tmp_path / 'run')
    options = ['train_cfg.val_interval=2', *SHORT[:-1], *KINDS[kind]]
    assert call('train', FINETUNE, *where, options=options) == 0
    weights = read_checkpoint(tmp_path / 'run' / 'epoch_2.pth')
    assert weights['state_dict']['backbone.patch_embed.proj.weight'].shape[1] == 5
    assert (
        call(
            'test',
            FINETUNE,
            tmp_path / 'run' / 'epoch_2.pth',
            '--data',
            data / kind,
            '--work-dir',
            tmp_path / 'test',
            options=KINDS[kind],
        )
        == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_upernet_sees_the_values_of_the_files(kind, data, pretrained, seen, tmp_path):
    endings = [f'{part}_dataloader.dataset.img_suffix=.npy' for part in ('train', 'val', 'test') if kind == 'npy']
    scenes = data / ('scenes' if kind == 'tiff' else 'scenes_npy')
    where = ('--data', scenes, '--init', pretrained[kind] / 'epoch_2.pth', '--work-dir', tmp_path / 'run')
    options = [
        *KINDS[kind],
        *endings,
        *('log_level=ERROR', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'param_scheduler.warmup=1'),
        *(
            'train_dataloader.batch_size=2',
            'auto_scale_lr.base_batch_size=2',
            'train_dataloader.dataset.pipeline.2.prob=0.0',
        ),
    ]
    assert call('train', SEGMENT, *where, options=options) == 0
    for inputs, part in ((seen[0], 'training'), (seen[-1], 'validation')):
        images = truth_of(sorted((scenes / 'images' / part).iterdir()))
        assert all(number_of(image.numpy(), images) >= 0 for image in inputs)
    assert seen[0].shape == (2, 5, 96, 144)


@pytest.mark.slow
def test_pictures_show_the_chosen_channels(data, pretrained, monkeypatch, tmp_path, capsys):
    drawn = []
    monkeypatch.setattr(visualize, 'captioned_grid', lambda columns, text: drawn.append((columns, text)) or b'png')
    where = (pretrained['tiff'] / 'epoch_2.pth', '--images', data / 'tiff' / 'val', '--out', tmp_path)
    assert call('visualize', *where, '--channels', 4) == 0
    assert call('visualize', *where, '--channels', 3, 0, 1, '--what', 'reconstruction') == 0
    levels = [HALF * (1 + image) for image in truth(data, 'tiff', 'val')]
    for (columns, text), channels in ((drawn[0], [4, 4, 4]), (drawn[3], [3, 0, 1])):
        shown = np.stack([image[channels].transpose(1, 2, 0) for image in levels])
        low, high = np.percentile(shown, (1, 99), axis=(0, 1, 2))
        expected = (255 * (shown - low) / (high - low)).clip(0, 255)
        assert np.abs(columns['original'] - expected).max() <= 0.51
        assert {picture.shape for picture in columns.values()} == {(6, 64, 64, 3)}
        assert f'Shown channels: {", ".join(map(str, dict.fromkeys(channels)))}, from their 1st to' in text
    assert np.array_equal(drawn[1][0]['image'], drawn[0][0]['original'])
    assert call('visualize', *where, '--channels', 5) == 2
    assert 'channels [5] cannot be shown: give one or three of 0 to 4' in capsys.readouterr().err
    assert call('visualize', where[0], '--out', tmp_path) == 2
    assert '--images embedded are 8-bit color images' in capsys.readouterr().err


def test_weights_of_other_channels_or_statistics_are_refused(data, pretrained, capsys):
    where = ('--data', data / 'tiff', '--init', pretrained['tiff'] / 'epoch_2.pth')
    assert call('train', FINETUNE, *where, options=['image_channels.mean=[1,2,3,4,5]']) == 2
    assert 'was made with mean [127.5, 127.5, 127.5, 127.5, 127.5]' in capsys.readouterr().err
    assert call('train', FINETUNE, *where, options=['image_channels.select=[0,1,2]']) == 2
    assert 'epoch_2.pth' in capsys.readouterr().err


def test_another_scale_than_in_pretraining_is_said(data, pretrained, monkeypatch):
    said = []
    monkeypatch.setattr('bootmae.config.channels.print_log', lambda text, **options: said.append(text))
    where = ('--data', data / 'tiff', '--init', pretrained['tiff'] / 'epoch_2.pth')
    for ranges, count in (('[0,4095]', 0), ('[0,1000]', 1)):
        options = [*SHORT[:-1], f'image_channels.ranges={ranges}']
        assert call('train', FINETUNE, *where, '--dry-run', options=options) == 0
        warned = [text for text in said if 'other image_channels: ranges=[[0, 4095], ' in text]
        assert len(warned) == count


def test_a_broken_file_is_replaced_in_training_and_found_before(data, tmp_path, capsys):
    for path in sorted((data / 'tiff' / 'train').glob('*/*.tif')):
        (tmp_path / path.name.replace('0', path.parent.name, 1)).write_bytes(path.read_bytes())
    broken = tmp_path / 'brick00.tif'
    broken.write_bytes(broken.read_bytes()[:9000])
    assert call('verify_data', PRETRAIN, '--data', tmp_path) == 1
    out = capsys.readouterr().out
    assert f'{broken}: cannot be decoded as TIFF' in out
    assert '1 fault, 0 notes' in out
    options = [*SHORT, 'train_cfg.max_epochs=1', 'default_hooks.bad_images.budget=0.1']
    assert call('train', PRETRAIN, '--data', tmp_path, '--work-dir', tmp_path / 'run', options=options) == 0
    (row,) = (tmp_path / 'run' / 'bad_images.txt').read_text().splitlines()
    assert row.startswith(f'{broken}\tValueError: {broken} cannot be decoded as TIFF')


@pytest.mark.parametrize('kind, said', [('tiff', 'holds uint16 (64, 64, 5), which'), ('npy', 'found 18 .npy;')])
def test_a_color_config_names_the_setting(kind, said, data, tmp_path, capsys):
    """For files that only this setting reads: in a dry run, a run, and the check of a folder."""
    where = (CONFIGS / 'pretrain' / 'bootmae_small_data.py', '--data', data / kind, '--work-dir', tmp_path / 'run')
    small = ['train_dataloader.batch_size=8', 'auto_scale_lr.base_batch_size=8']
    for more in (['--dry-run'], []):
        assert call('train', *where, *more, options=small) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert said in line
        assert 'the setting image_channels reads' in line
    assert call_tool('verify_data', data / kind / 'train') in (1, 2)
    assert 'the setting image_channels reads' in ''.join(capsys.readouterr())
