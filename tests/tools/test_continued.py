"""tools/train.py --init with a pretraining config: first step, frozen encoder, resume, provenance, refusals."""

import itertools
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from calling import call_tool
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.registry import MODELS

from bootmae.checkpoints import find_encoder, read_checkpoint
from bootmae.checkpoints.load import tensors_hash
from bootmae.commands.train import train as run_training
from bootmae.config.checks import check_schedule
from bootmae.config.load import load_config
from bootmae.config.model import model_config
from bootmae.config.weights import adopts_statistics, apply_init, input_statistics
from bootmae.models.vit import resolve_arch
from bootmae.places import REPOSITORY
from bootmae.suite.cells import make_cells
from bootmae.suite.collect import cell_config
from bootmae.suite.spec import load_suite

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PRETRAIN = {method: CONFIGS / 'pretrain' / f'{method}_debug.py' for method in ('bootmae', 'mae')}
FINETUNE = CONFIGS / 'cls' / 'bootmae_debug_finetune.py'
COUNT = itertools.count()
IMAGENET = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
CONTINUED = {
    'optim_wrapper.paramwise_cfg': dict(layer_decay=0.8, separate_encoder=True),
    'param_scheduler.encoder_start': 1,
    'param_scheduler.warmup': 0.5,
}


@HOOKS.register_module(force=True)
class FirstState(Hook):
    """Saves the model of before the first step into the work directory."""

    def before_train(self, runner) -> None:
        torch.save(runner.model.state_dict(), f'{runner.work_dir}/start.pth')


def build(method: str, options: dict | None = None) -> torch.nn.Module:
    model = MODELS.build(model_config(load_config(PRETRAIN[method], options)))
    model.init_weights()
    return model


@pytest.fixture(scope='module')
def given(tmp_path_factory) -> dict[str, Path]:
    """A file of each method with random weights, as its runs write them."""
    paths = {}
    for seed, method in enumerate(PRETRAIN):
        torch.manual_seed(seed)
        model, (mean, std) = build(method), input_statistics(load_config(PRETRAIN[method]))
        for name, value in model.named_parameters():
            if not name.endswith('pos_embed'):
                value.data.add_(0.1 * torch.randn_like(value))
        paths[method] = tmp_path_factory.mktemp('given') / f'{method}.pth'
        meta = dict(bootmae=dict(mean=list(mean), std=list(std), img_size=[32, 32], num_heads=3))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), paths[method])
    return paths


def train(method: str, work_dir: Path, options: dict | None = None, **kwargs):
    """Two epochs of two steps of 32 images."""
    quiet = {
        'experiment_name': f'continued_{next(COUNT)}',
        'log_level': 'ERROR',
        'visualizer.vis_backends': [],
        'train_dataloader.dataset.indices': 64,
        'default_hooks.first.type': 'FirstState',
        'default_hooks.checkpoint.max_keep_ckpts': -1,
    }
    return run_training(str(PRETRAIN[method]), str(work_dir), quiet | (options or {}), **kwargs)


@pytest.fixture(scope='module')
def run(given, tmp_path_factory) -> Path:
    """Work directory of a BootMAE that starts from MAE's weights, its encoder after one of two epochs."""
    folder = tmp_path_factory.mktemp('run')
    train('bootmae', folder, CONTINUED, init=str(given['mae']))
    return folder


def weights(path: Path, *prefixes: str) -> dict:
    content = read_checkpoint(path)
    state = content.get('state_dict', content)
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def equal(one: dict, two: dict) -> bool:
    return set(one) == set(two) and all(torch.equal(value, two[key]) for key, value in one.items())


def test_the_targets_of_the_first_step(run, given):
    """They are the last block's output in mmpretrain's own ViT with the weights of the file."""
    model, mae, found = build('bootmae'), build('mae'), []
    model.load_state_dict(read_checkpoint(run / 'start.pth'))
    mae.load_state_dict(read_checkpoint(given['mae'])['state_dict'])
    mae.train(False)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    images = (pixels - torch.tensor(IMAGENET[0]).view(3, 1, 1)) / torch.tensor(IMAGENET[1]).view(3, 1, 1)
    mae.backbone.layers[-1].register_forward_hook(lambda *args: found.append(args[-1]))
    with torch.no_grad():
        mae.backbone(images, mask=None)
        out = model.predict(images, model.batch_ids_shuffle(None, 2, images.device))
    wanted = found[0][:, 1:].gather(1, out.ids_masked.unsqueeze(-1).expand(-1, -1, 48))
    torch.testing.assert_close(out.targets, wanted, rtol=1e-4, atol=1e-4)
    facts = read_checkpoint(run / 'epoch_1.pth')['meta']['bootmae']
    assert (facts['mean'], facts['std']) == (pytest.approx(IMAGENET[0]), pytest.approx(IMAGENET[1]))


def test_the_encoder_starts_after_the_decoders(run):
    encoders, decoders = ('backbone.', 'momentum.'), ('pixel_decoder.', 'feature_decoder.')
    start, first, second = (run / f'{name}.pth' for name in ('start', 'epoch_1', 'epoch_2'))
    assert equal(weights(first, *encoders), weights(start, *encoders))
    assert not torch.equal(*(weights(path, '')['pixel_decoder.embed.weight'] for path in (start, first)))
    for part in (*encoders, *decoders):
        assert not equal(weights(second, part), weights(first, part)), part


def test_what_a_checkpoint_records(run, given):
    facts = read_checkpoint(run / 'epoch_2.pth')['meta']['bootmae']
    digest = tensors_hash(find_encoder(read_checkpoint(given['mae'])).state)
    assert (facts['init'], facts['init_kind'], facts['init_hash']) == ('mae.pth', 'mmpretrain MAE', digest)
    assert facts['init_remarks'] == (
        'decoders: new (the file has none of this kind); momentum encoder: a copy of the online encoder; input mean '
        '[123.675, 116.28, 103.53], std [58.395, 57.12, 57.375], as for the file'
    )
    assert read_checkpoint(run / 'epoch_2.pth')['meta']['identity']['init_hash'] == digest


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(run, given, tmp_path):
    """The given file does not replace weights of the checkpoint; without it, images are normalized as before, too."""
    with_file = train('bootmae', tmp_path, CONTINUED, init=str(given['mae']), resume=str(run / 'epoch_1.pth'))
    assert equal(with_file.model.state_dict(), weights(run / 'epoch_2.pth', ''))
    without = train('bootmae', tmp_path / 'other', CONTINUED, resume=str(run / 'epoch_1.pth'), resume_changed=True)
    assert equal(without.model.state_dict(), weights(run / 'epoch_2.pth', ''))
    assert without.model.data_preprocessor.mean.flatten().tolist() == pytest.approx(IMAGENET[0])
    facts = read_checkpoint(tmp_path / 'other' / 'epoch_2.pth')['meta']['bootmae']
    assert facts['init_remarks'].startswith('decoders: new')


def test_other_start_weights_are_another_run(run, given, tmp_path):
    with pytest.raises(ValueError, match=r'is from another run: start weights .*mae.pth.*, here .*bootmae.pth'):
        train('bootmae', tmp_path, CONTINUED, init=str(given['bootmae']), resume=str(run / 'epoch_1.pth'))


def test_mae_starts_from_bootmae(given, tmp_path):
    """Without warm-up, so that the first step changes the weights."""
    runner = train('mae', tmp_path, {'train_cfg.max_epochs': 1}, init=str(given['bootmae']))
    model = build('mae')
    model.load_state_dict(read_checkpoint(tmp_path / 'start.pth'))
    theirs = build('bootmae')
    theirs.load_state_dict(read_checkpoint(given['bootmae'])['state_dict'])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.train(False)  # mmpretrain's eval() gives None
    with torch.no_grad():
        features = model.backbone(images, mask=None)[0]
        torch.testing.assert_close(features, theirs.backbone(images)[0], rtol=1e-4, atol=1e-4)
    assert runner.model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
    assert 'decoders: new (the file has none of this kind)' in runner.model.backbone.load_report.remarks


def test_downstream_follows_on_request(run, capsys):
    """The statistics of a continued encoder are those of its first weights."""
    few = ['train_dataloader.dataset.labels_per_class=2', 'test_dataloader.dataset.indices=40']
    args = ['knn', FINETUNE, '--init', run / 'epoch_2.pth', '--cfg-options', *few]
    assert call_tool(*args) == 2
    assert 'or set adopt_statistics=True (normalize as the weights need it)' in capsys.readouterr().err
    values = []
    for option in ('adopt_statistics', 'convert_statistics'):
        assert call_tool(*args, f'{option}=True') == 0
        values.append(re.search(r'labels: (\S+) %', capsys.readouterr().out)[1])
    assert values[0] == values[1]


# --- settings ---


def test_statistics_of_a_pretraining(given):
    """By default it follows the weights; the config may ask for a conversion, or for neither."""
    cfg = load_config(PRETRAIN['bootmae'])
    apply_init(cfg, str(given['mae']))
    assert input_statistics(cfg) == (pytest.approx(IMAGENET[0]), pytest.approx(IMAGENET[1]))
    assert cfg.init == dict(checkpoint=str(given['mae']), source='online')
    cfg = load_config(PRETRAIN['bootmae'], {'convert_statistics': True})
    apply_init(cfg, str(given['mae']))
    assert cfg.init.statistics == input_statistics(cfg) == ([127.5] * 3, [127.5] * 3)
    cfg = load_config(PRETRAIN['bootmae'], {'adopt_statistics': False})
    with pytest.raises(ValueError, match='mae.pth was made with mean'):
        apply_init(cfg, str(given['mae']))
    with pytest.raises(ValueError, match='convert_statistics=True changes the weights .*: set one of them'):
        adopts_statistics(load_config(PRETRAIN['bootmae'], {'adopt_statistics': True, 'convert_statistics': True}))
    assert not adopts_statistics(load_config(FINETUNE))


def test_unknown_statistics_cannot_be_converted(given, tmp_path):
    state = read_checkpoint(given['mae'])['state_dict']
    encoder = {key: value for key, value in state.items() if key.startswith('backbone.')}
    torch.save(dict(state_dict=encoder), tmp_path / 'encoder.pth')
    cfg = load_config(FINETUNE)
    apply_init(cfg, str(tmp_path / 'encoder.pth'))
    assert input_statistics(cfg)[0] == [127.5] * 3
    message = 'convert_statistics=True needs the input statistics of .*encoder.pth, and the file does not record them'
    with pytest.raises(ValueError, match=message):
        apply_init(load_config(FINETUNE, {'convert_statistics': True}), str(tmp_path / 'encoder.pth'))


@pytest.mark.parametrize('method', PRETRAIN)
@pytest.mark.parametrize('flags', [[], ['--dry-run']])
def test_what_does_not_fit_is_refused_at_once(given, tmp_path, capsys, method, flags):
    arch = dict(bootmae='model.backbone.arch.embed_dims=36', mae='model.backbone.arch.num_layers=3')[method]
    options = ['--work-dir', tmp_path / 'run', '--cfg-options', arch, 'train_dataloader.dataset.indices=64']
    assert call_tool('train', PRETRAIN[method], '--init', given['bootmae'], *flags, *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf'error: {given["bootmae"]} was not loaded into the backbone: (it has 2 blocks|.*shape).*', error
    )
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['bootmae_continued', 'mae_continued', 'bootmae_continued_cpu', 'mae_continued_cpu'])
def test_the_recipes(name):
    """Both methods continue alike, and the encoder waits for the decoders."""
    cfg, other = load_config(name), load_config(name.replace('bootmae', 'mae'))
    assert cfg.train_cfg == other.train_cfg
    assert cfg.optim_wrapper.optimizer == other.optim_wrapper.optimizer
    parts = cfg.optim_wrapper.paramwise_cfg, other.optim_wrapper.paramwise_cfg
    assert [(part.layer_decay, part.separate_encoder) for part in parts] == [(0.85, True)] * 2
    assert cfg.param_scheduler.encoder_start == other.param_scheduler.encoder_start > 0
    assert adopts_statistics(cfg)
    assert adopts_statistics(other)
    assert not adopts_statistics(load_config(name, {'convert_statistics': True}))


def test_a_plan_has_the_statistics_of_the_weights(given, capsys):
    args = ['train', PRETRAIN['bootmae'], '--init', given['mae'], '--dry-run', '--cfg-options']
    assert call_tool(*args, 'train_dataloader.dataset.indices=64') == 0
    assert re.search(r'input_mean +\[123\.67\d*, ', capsys.readouterr().out)


@pytest.mark.parametrize('method', ['bootmae', 'mae'])
def test_the_recipes_for_the_cpu(tmp_path, method):
    """On a folder of JPEGs, from a file of the demo's size: 6 x 6 patches become 8 x 8."""
    torch.manual_seed(0)
    model = MODELS.build(model_config(load_config(f'{method}_demo')))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'demo.pth')
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 70, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f'{number}.jpg'), pixels)
    options = {'images': str(tmp_path), 'train_dataloader.batch_size': 2, 'auto_scale_lr.base_batch_size': 2}
    options |= {'log_level': 'ERROR', 'experiment_name': f'cpu_{method}', 'train_cfg.max_epochs': 3}
    options |= {'param_scheduler.warmup': 1, 'param_scheduler.encoder_start': 1, 'default_hooks.pictures': None}
    runner = run_training(f'{method}_continued_cpu', str(tmp_path / 'run'), options, init=str(tmp_path / 'demo.pth'))
    assert runner.iter == 6
    assert runner.model.backbone.load_report.resized == ['pos_embed from 6x6 to 8x8']
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').data[0]).all()


@pytest.mark.parametrize('size', [None, 'cpu'])
def test_the_suite_for_own_images(size):
    """Untouched, continued and from scratch, with one encoder; only the continued ones start from the weights."""
    cells = make_cells(load_suite(REPOSITORY / 'suites' / 'continued.yaml', size), Path('none'))
    pretrainings = {cell.method.name: cell for cell in cells if not cell.task}
    given = next(cell for cell in cells if cell.task and cell.method.name == 'given').weights
    starts = {'mae-continued': given, 'bootmae-continued': given, 'mae': None, 'bootmae': None}
    assert {name: cell.weights for name, cell in pretrainings.items()} == starts
    cfgs = {name: load_config(cell.config, cell.options) for name, cell in pretrainings.items()}
    for name, cfg in cfgs.items():
        late, decay = cfg.param_scheduler.encoder_start, cfg.optim_wrapper.paramwise_cfg.layer_decay
        assert (late > 0, decay) == ((True, 0.85) if 'continued' in name else (False, 1.0))
        check_schedule(cfg)
    with torch.device('meta'):
        widths = {MODELS.build(cfg.model.backbone).embed_dims for cfg in cfgs.values()}
    for cell in (cell for cell in cells if cell.task):
        cfg = cell_config(cell)
        assert {resolve_arch(cfg.model.backbone.arch)['embed_dims'], cfg.model.head.in_channels} == widths
        assert cfg.adopt_statistics
