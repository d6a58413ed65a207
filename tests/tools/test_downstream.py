"""From every kind of pretrained file to a segmentation and a detection result, by the commands that a user gives."""

import itertools
import json
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from calling import call_tool
from mmengine.config import Config
from mmengine.model import BaseModel
from toy_runs import DEBUG, write_config, write_files

from bootmae.checkpoints import read_checkpoint
from bootmae.checkpoints.keys import from_mmpretrain
from bootmae.config.load import load_config
from bootmae.models.positions import resize_positions

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / 'tests' / 'checkpoints'))

from wrong_files import MOMENTUM, WRONG_FILES, Size  # noqa: E402

COUNT = itertools.count()
HALF, IMAGENET = [127.5] * 3, [123.675, 116.28, 103.53]
# format: (kind in the report, mean of its images; None: the file does not tell, the config's stays)
FORMATS = dict(
    bootmae=('BootMAE run (online)', HALF),
    mae=('mmpretrain MAE', IMAGENET),
    authors=("authors' BootMAE (online)", HALF),
    facebookresearch=('facebookresearch MAE', IMAGENET),
    timm=('timm ViT', None),
)
FAST = [('seg', 'bootmae'), ('det', 'mae')]
DEMO = Size(embed_dims=64, depth=3, num_heads=2, img_size=48, patch_size=8)


def call(tool: str, *args, options=()) -> int:
    """Each run gets its own name, since mmengine keeps runs by name."""
    return call_tool(tool, *args, '--cfg-options', f'experiment_name=downstream_{next(COUNT)}', *options)


@dataclass
class Run:
    """A finished run of tools/train.py."""

    work_dir: Path
    config: Path

    @property
    def checkpoint(self) -> Path:
        return Path((self.work_dir / 'last_checkpoint').read_text().strip())

    @cached_property
    def content(self) -> dict:
        return read_checkpoint(self.checkpoint)

    @property
    def start(self) -> dict:
        """The backbone's weights before the first step."""
        return torch.load(self.work_dir / 'start.pth')

    @property
    def log(self) -> str:
        return ''.join(path.read_text() for path in self.work_dir.glob('*/*.log'))

    @property
    def lines(self) -> list[dict]:
        """What was logged, in order, of the last run in the work directory."""
        path = max(self.work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def metrics(self) -> dict[str, float]:
        """Of its own validation."""
        return metrics_of(self.lines[-1])


def metrics_of(line: dict) -> dict[str, float]:
    return {key: value for key, value in line.items() if key not in ('step', 'time', 'data_time')}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('scenes') / 'scenes'


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp('files'))


@pytest.fixture(scope='module')
def train(tmp_path_factory, scenes, files):
    """``train(task, format)``: a run of two steps from such a file, made once."""
    runs = {}

    def make(task: str, form: str, *args) -> Run:
        key = (task, form, *args)
        if key not in runs:
            folder = tmp_path_factory.mktemp(f'{task}_{form}')
            run = Run(folder / 'work', write_config(folder, task, scenes))
            assert call('train', run.config, '--init', files[form], '--work-dir', run.work_dir, *args) == 0
            runs[key] = run
        return runs[key]

    return make


def encoder_in(path: Path, prefix: str = 'backbone.') -> dict:
    """The encoder's weights in the file of a run, under our names."""
    state = {
        key.removeprefix(prefix): value
        for key, value in torch.load(path)['state_dict'].items()
        if key.startswith(prefix)
    }
    return from_mmpretrain(state) if 'ln1.weight' in state else state


def assert_starts_from(run: Run, encoder: dict, task: str) -> None:
    """All of the encoder but its final norm, with its positions interpolated from 6 x 6 to the model's patches."""
    start = run.start
    grid = tuple(n // 8 for n in load_config(DEBUG[task]).model.backbone.img_size)
    encoder = {key: value for key, value in encoder.items() if not key.startswith('norm.')}
    assert len(encoder) == 4 + 3 * 13
    torch.testing.assert_close(start['pos_embed'], resize_positions(encoder.pop('pos_embed'), (6, 6), grid))
    assert all(torch.equal(start[key], value) for key, value in encoder.items())


def assert_recorded(run: Run, form: str) -> None:
    """One report line in the log; what it says, and how images were normalized, is in the checkpoint."""
    kind, mean = FORMATS[form]
    (report,) = re.findall(r'INFO - (loaded .*)\n', run.log)
    number, total, name, found, digest = re.fullmatch(
        r'loaded (\d+)/(\d+) encoder tensors of (\S+) \[(.*?)\], .*, sha256 (\w{12})(?:; 2 attention heads .*)?', report
    ).groups()
    assert (number, total, Path(name).name, found) == ('43', '43', f'{form}.pth', kind)
    assert ('interpolated: pos_embed from 6x6 to' in report) == ('new' in report) == True  # noqa: E712
    facts = run.content['meta']['bootmae']
    assert (facts['init_hash'], facts['init_kind'], facts['init']) == (digest, kind, f'{form}.pth')
    assert facts['mean'] == pytest.approx(mean or HALF)
    assert facts['num_heads'] == 2


@pytest.mark.parametrize(
    'task, form',
    [
        pytest.param(task, form, marks=[] if (task, form) in FAST else pytest.mark.slow)
        for task in DEBUG
        for form in FORMATS
    ],
)
def test_from_every_format(train, files, task, form):
    run = train(task, form)
    assert_starts_from(run, encoder_in(files['mae' if form == 'mae' else 'bootmae']), task)
    assert_recorded(run, form)
    assert [line['step'] for line in run.lines if 'loss' in line] == [1, 2]
    trained = run.content['state_dict']
    assert not torch.equal(trained['backbone.blocks.0.attn.qkv.weight'], run.start['blocks.0.attn.qkv.weight'])


def test_the_two_encoders_differ(files):
    """Else the tests above would prove little."""
    ours, mae = encoder_in(files['bootmae']), encoder_in(files['mae'])
    momentum = encoder_in(files['bootmae'], 'momentum.')
    for key in ('cls_token', 'patch_embed.proj.weight', 'blocks.2.mlp.fc2.bias'):
        assert not torch.equal(ours[key], mae[key])
        assert not torch.equal(ours[key], momentum[key])


@pytest.mark.parametrize('task, form', [*FAST, pytest.param('seg', 'mae', marks=pytest.mark.slow)])
def test_the_checkpoint_repeats_the_validation(train, tmp_path, task, form):
    """With the statistics of its run: the config alone would normalize an MAE run's images wrongly."""
    run = train(task, form)

    def evaluate(checkpoint: Path, name: str) -> dict:
        assert call('test', run.config, checkpoint, '--work-dir', tmp_path / name) == 0
        return metrics_of(json.loads(next((tmp_path / name).glob('*/[0-9]*.json')).read_text()))

    found = evaluate(run.checkpoint, 'same')
    assert found == pytest.approx(run.metrics, abs=1e-9)
    assert (
        {'mIoU', 'IoU_background'} <= set(found)
        if task == 'seg'
        else {'coco/bbox_mAP', 'coco/segm_mAP', 'sum/scores'} <= set(found)
    )
    assert found['mIoU' if task == 'seg' else 'sum/scores'] > 0
    if form == 'mae':
        content = torch.load(run.checkpoint, weights_only=False)
        content['meta'].pop('bootmae')
        torch.save(content, tmp_path / 'forgetful.pth')
        other = evaluate(tmp_path / 'forgetful.pth', 'other')
        assert other['aAcc' if task == 'seg' else 'sum/scores'] != found['aAcc' if task == 'seg' else 'sum/scores']


def test_the_momentum_encoder_on_request(train, files):
    run = train('seg', 'bootmae', '--source', 'momentum')
    encoder = encoder_in(files['bootmae'], 'momentum.')
    assert_starts_from(run, encoder, 'seg')
    assert run.content['meta']['bootmae']['init_kind'] == 'BootMAE run (momentum)'
    online = train('seg', 'bootmae').start
    assert not torch.equal(run.start['blocks.1.mlp.fc1.weight'], online['blocks.1.mlp.fc1.weight'])


def test_resume(train, tmp_path):
    """In another work directory, from the third step on, with the weights and statistics of the second."""
    run = train('seg', 'mae')
    more = Run(tmp_path, run.config)
    options = ['train_cfg.max_iters=3', 'train_cfg.val_interval=3', 'default_hooks.checkpoint.interval=3']
    assert (
        call(
            'train', run.config, '--resume', run.checkpoint, '--resume-changed', '--work-dir', tmp_path, options=options
        )
        == 0
    )
    assert [line['step'] for line in more.lines if 'loss' in line] == [3]
    before = run.content['state_dict']
    assert all(torch.equal(value, before[f'backbone.{key}']) for key, value in more.start.items())
    meta = more.content['meta']
    assert meta['iter'] == 3
    assert meta['bootmae']['mean'] == pytest.approx(IMAGENET)


def test_test_time_augmentation_needs_a_config_for_it(train, capsys):
    run = train('seg', 'bootmae')
    assert call('test', run.config, run.checkpoint, '--tta') == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r'error: .*seg\.py has no tta_pipeline and tta_model: test without --tta', line)


# --- wrong files ---

QUICK = (
    'width',
    'depth',
    'heads',
    'patch size',
    'block missing',
    'tensor missing',
    'ResNet',
    'empty',
    'optimizer only',
    'ambiguous prefix',
    'text',
    'truncated',
    'truncated safetensors',
    'whole model',
    'no momentum encoder',
)


@pytest.mark.parametrize(
    'task, name',
    [
        pytest.param(task, name, marks=[] if task == 'seg' and name in QUICK else pytest.mark.slow)
        for task in DEBUG
        for name in WRONG_FILES
    ],
)
def test_wrong_files_are_refused_before_the_first_step(tmp_path, scenes, monkeypatch, capsys, task, name):
    """With exit code 2 and one line that names the file and the reason."""
    monkeypatch.setattr(Config, 'pretty_text', '')  # most of the time that a refusal takes
    monkeypatch.setattr(BaseModel, 'train_step', lambda *args, **kwargs: pytest.fail('a step was made'))
    make, message = WRONG_FILES[name]
    path = make(tmp_path, DEMO)
    args = ['--source', 'momentum'] if name in MOMENTUM else []
    config = write_config(tmp_path, task, scenes, "log_level = 'ERROR'\n")
    assert call('train', config, '--init', path, '--work-dir', tmp_path / 'work', *args) == 2
    *others, line = capsys.readouterr().err.splitlines()
    assert re.match(f'error: {re.escape(str(path))}.*({message})', line), line
    assert not [other for other in others if 'Traceback' in other or other.startswith('error')]
    assert not list((tmp_path / 'work').glob('*.pth'))
