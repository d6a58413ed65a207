"""Weights that are not finite are refused by every tool, and files with raw and averaged weights say what was taken."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from calling import call_tool

from bootmae.checkpoints import find_encoder, read_checkpoint
from bootmae.checkpoints.keys import to_timm
from bootmae.commands.visualize import DrawOptions, prepare
from bootmae.config.load import load_config
from bootmae.config.steps import training_config
from bootmae.evaluation.chance import chance_limit, chance_warning
from bootmae.results.rows import read_rows

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FINETUNE = CONFIGS / 'cls' / 'bootmae_debug_finetune.py'
PRETRAIN = CONFIGS / 'pretrain' / 'bootmae_debug.py'
FACTS = dict(mean=[127.5] * 3, std=[127.5] * 3, img_size=[32, 32], num_heads=3)
COUNT = itertools.count()
NAN, INF = float('nan'), float('inf')
FEW = ['train_dataloader.dataset.labels_per_class=2', 'test_dataloader.dataset.indices=40']


def model_state(config: Path) -> dict:
    """Random weights of a config's model."""
    from mmpretrain.registry import MODELS

    cfg = load_config(config)
    torch.manual_seed(1)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.get('data_preprocessor')))
    model.init_weights()
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope='module')
def states() -> dict[str, dict]:
    """Weights of a pretraining run and of a classifier of the debug configs."""
    return dict(run=model_state(PRETRAIN), cls=model_state(FINETUNE))


def save(path: Path, state: dict, broken: dict | None = None, **content) -> Path:
    """Save a run with some values changed: ``{name: value}`` sets the last value of a tensor."""
    state = {key: value.clone() for key, value in state.items()}
    for key, value in (broken or {}).items():
        state[key].view(-1)[-1] = value
    meta = dict(epoch=1, iter=1, bootmae=FACTS)
    torch.save(dict(state_dict=state, meta=meta, optimizer=dict(state={}, param_groups=[])) | content, path)
    return path


def call(capsys, *args) -> tuple[int, str, str]:
    capsys.readouterr()
    code = call_tool(*args)
    return code, *capsys.readouterr()


def name() -> str:
    return f'experiment_name=taken_{next(COUNT)}'


# --- not finite ---

WEIGHT = 'backbone.blocks.1.mlp.fc1.weight'


def readers(path: Path, out: Path) -> dict[str, tuple]:
    options = ['--work-dir', out, '--cfg-options', 'log_level=ERROR', name(), 'train_dataloader.dataset.indices=32']
    return {
        'knn': ('knn', FINETUNE, '--init', path, '--rows', out / 'rows.csv', '--cfg-options', *FEW),
        'train --init': ('train', FINETUNE, '--init', path, *options),
        'train --resume': ('train', PRETRAIN, '--resume', path, *options),
        'test': ('test', FINETUNE, path, *options),
        'visualize': ('visualize', path, '--what', 'pca', '--out', out / 'a.png'),
        'reconstruction': ('visualize', path, '--what', 'reconstruction', '--config', PRETRAIN, '--out', out / 'a.png'),
        **{
            f'convert --to {to}': ('convert_checkpoint', path, '--to', to, out / 'new.safetensors')
            for to in ('timm', 'safetensors')
        },
    }


@pytest.mark.parametrize('tool', readers(Path(), Path()))
def test_every_reader_refuses_weights_that_are_not_finite(tmp_path, states, capsys, tool):
    state = states['cls' if tool == 'test' else 'run']
    path = save(tmp_path / 'a.pth', state, {WEIGHT: NAN, 'backbone.pos_embed': INF})
    code, _, error = call(capsys, *readers(path, tmp_path)[tool])
    assert code == 2
    line = error.splitlines()[-1]
    assert re.fullmatch(
        rf'error: {path} has (encoder )?weights that are not finite \(NaN and infinite\), 2 of \d+ tensors: '
        r'(backbone\.)?pos_embed, (backbone\.)?blocks\.1\.mlp\.fc1\.weight\. The training that wrote it has failed, or '
        'its values overflowed in another type. Use an earlier checkpoint of its run, or another file',
        line,
    ), line
    assert not [each for each in tmp_path.iterdir() if each.suffix in ('.png', '.csv', '.safetensors')]


def test_only_what_is_taken_must_be_finite(tmp_path, states, capsys):
    """The online encoder of a file whose momentum encoder is broken; all of it when a run is resumed or exported."""
    path = save(tmp_path / 'a.pth', states['run'], {'momentum.blocks.0.norm1.bias': NAN})
    new = tmp_path / 'new.safetensors'
    assert call(capsys, 'convert_checkpoint', path, '--to', 'timm', new)[0] == 0
    assert torch.equal(find_encoder(read_checkpoint(new)).state['cls_token'], states['run']['backbone.cls_token'])
    code, _, error = call(capsys, 'convert_checkpoint', path, '--to', 'timm', new, '--force', '--source', 'momentum')
    assert (code, error.split(': ')[2].split('. ')[0]) == (2, 'blocks.0.norm1.bias')
    code, _, error = call(capsys, 'convert_checkpoint', path, '--to', 'safetensors', tmp_path / 'all.safetensors')
    assert (code, error.split(': ')[2].split('. ')[0]) == (2, 'momentum.blocks.0.norm1.bias')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda state: state.half().masked_fill(state == state.max(), INF),
            r'\(infinite\), 1 of \d+ tensors: norm.bias',
        ),
        (
            lambda state: state.bfloat16().masked_fill(state == state.max(), NAN),
            r'\(NaN\), 1 of \d+ tensors: norm.bias',
        ),
        (lambda state: state.double() + 1e300, r'\(infinite\), 1 of \d+ tensors: norm.bias'),
    ],
    ids=['half', 'bfloat16', 'beyond float32'],
)
def test_other_types(tmp_path, states, capsys, change, message):
    state = dict(states['run'])
    state['backbone.norm.bias'] = change(state['backbone.norm.bias'])
    path = save(tmp_path / 'a.pth', state)
    code, _, error = call(capsys, 'convert_checkpoint', path, '--to', 'timm', tmp_path / 'b.pth')
    assert code == 2
    assert re.search(message, error), error


def test_large_finite_weights_are_taken(tmp_path, states, capsys):
    """Their sum overflows."""
    state = dict(states['run']) | {'backbone.norm.bias': torch.full((48,), 3e38)}
    path = save(tmp_path / 'a.pth', state)
    assert call(capsys, 'convert_checkpoint', path, '--to', 'timm', tmp_path / 'b.pth')[0] == 0


def test_running_statistics_of_a_head(tmp_path, states, capsys):
    """Buffers count: batch normalization before the classifier of a linear probe."""
    state = states['cls'] | {
        'neck.bn.running_var': torch.tensor([1.0, NAN]),
        'neck.bn.num_batches_tracked': torch.ones(1),
    }
    path = save(tmp_path / 'a.pth', state)
    code, _, error = call(capsys, 'convert_checkpoint', path, '--to', 'safetensors', tmp_path / 'b.safetensors')
    assert code == 2
    assert 'weights that are not finite (NaN), 1 of ' in error
    assert 'neck.bn.running_var' in error


def test_an_encoder_of_zeros(tmp_path, states, capsys):
    state = {key: torch.zeros_like(value) for key, value in states['run'].items()}
    path = save(tmp_path / 'a.pth', state)
    for tool in ('visualize', 'convert --to timm'):
        code, _, error = call(capsys, *readers(path, tmp_path)[tool])
        assert (code, error.splitlines()[-1]) == (
            2,
            f'error: {path} has an encoder whose 8 weight matrices are all zero. Use an earlier checkpoint of its run, '
            'or another file',
        )


def test_the_newest_checkpoint_is_passed_over(tmp_path, states):
    """--resume without a name takes the newest one that can be resumed."""
    from bootmae.checkpoints.resume import choose_checkpoint

    save(tmp_path / 'epoch_1.pth', states['run'])
    save(tmp_path / 'epoch_2.pth', states['run'], {WEIGHT: NAN}, meta=dict(epoch=2, iter=2, bootmae=FACTS))
    warnings: list[str] = []
    assert choose_checkpoint(tmp_path, warnings.append).path == tmp_path / 'epoch_1.pth'
    (warning,) = warnings
    assert warning.startswith(
        f'skipped epoch_2.pth: {tmp_path}/epoch_2.pth has weights that are not finite (NaN), 1 of'
    )


# --- raw and averaged weights ---


def encoder_of(state: dict, prefix: str = 'backbone.') -> dict:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def moved(state: dict) -> dict:
    """Other weights of the same shapes: an average."""
    return {key: value * 0.5 if value.is_floating_point() else value for key, value in state.items()}


def below(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def pairs(states: dict) -> dict[str, tuple[dict, str]]:
    """Contents of files with raw and averaged weights, by their format, with the note about them."""
    raw = to_timm(encoder_of(states['run']))
    ema, cls = moved(raw), states['cls']

    def note(first: str, second: str, averaged: bool = False) -> str:
        what = ['raw weights', 'averaged weights']
        what = what[::-1] if averaged else what
        return (
            f"'{first}' ({what[0]}) is taken; --source {'raw' if averaged else 'ema'} takes '{second}' ({what[1]}) of "
            'this file'
        )

    return {
        'facebookresearch': (dict(model=raw, model_ema=ema, epoch=3), note('model', 'model_ema')),
        'timm': (dict(state_dict=raw, state_dict_ema=ema, arch='vit'), note('state_dict', 'state_dict_ema')),
        'ema': (dict(model=raw, ema=dict(module=ema, decay=0.9)), note('model', 'ema')),
        'DINO': (
            dict(student=below('module.backbone.', raw), teacher=below('backbone.', ema), epoch=3),
            note('student', 'teacher'),
        ),
        'I-JEPA': (
            dict(encoder=below('module.', raw), target_encoder=below('module.', ema), predictor={}),
            note('encoder', 'target_encoder'),
        ),
        'mmengine': (
            dict(
                state_dict=moved(cls),
                ema_state_dict=below('module.', cls) | dict(steps=torch.tensor(4)),
                meta=dict(epoch=1, iter=1, bootmae=FACTS),
            ),
            note('state_dict', 'ema_state_dict', averaged=True),
        ),
    }


@pytest.mark.parametrize('kind', ['facebookresearch', 'timm', 'ema', 'DINO', 'I-JEPA', 'mmengine'])
def test_a_file_with_both_kinds_of_weights(tmp_path, states, capsys, kind):
    """tools/convert_checkpoint.py says what it took; --source takes either."""
    content, note = pairs(states)[kind]
    torch.save(content, tmp_path / 'a.pth')
    raw = states['cls' if kind == 'mmengine' else 'run']['backbone.cls_token']
    wanted = dict(online=0.5 * raw if kind == 'mmengine' else raw, raw=raw, ema=0.5 * raw)
    for source, value in wanted.items():
        new = tmp_path / f'{source}.safetensors'
        code, line, _ = call(capsys, 'convert_checkpoint', tmp_path / 'a.pth', '--to', 'timm', new, '--source', source)
        assert code == 0
        assert torch.equal(find_encoder(read_checkpoint(new)).state['cls_token'], value), source
        if source == 'online':
            assert f'; {note} -> ' in line, line
        assert (', averaged weights, sha256' if torch.equal(value, 0.5 * raw) else ', raw weights, sha256') in line


@pytest.mark.parametrize(
    'raw, ema', [('student.backbone.', 'teacher.backbone.'), ('base_encoder.', 'momentum_encoder.')]
)
def test_both_kinds_of_weights_in_one_state(tmp_path, states, capsys, raw, ema):
    """Without --source this is an error that says how to choose."""
    weights = to_timm(encoder_of(states['run']))
    path, new = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(state_dict=below(f'module.{raw}', weights) | below(f'module.{ema}', moved(weights))), path)
    code, _, error = call(capsys, 'convert_checkpoint', path, '--to', 'timm', new)
    assert code == 2
    first, second = (each.split('.')[0] for each in (raw, ema))
    assert error.endswith(f"--source raw takes '{first}.' and --source ema '{second}.', its average\n"), error
    for source, factor in (('raw', 1), ('ema', 0.5), ('momentum', 0.5)):
        assert call(capsys, 'convert_checkpoint', path, '--to', 'timm', new, '--source', source, '--force')[0] == 0
        assert torch.equal(find_encoder(read_checkpoint(new)).state['cls_token'], factor * weights['cls_token'])


def test_knn_says_which_weights_it_took(tmp_path, states, capsys):
    content, note = pairs(states)['facebookresearch']
    torch.save(content, tmp_path / 'a.pth')
    hashes = []
    for source, said in (
        ('online', note),
        ('ema', "'model_ema' (averaged weights) is taken; --source raw takes 'model'"),
    ):
        rows = ['--source', source, '--rows', tmp_path / f'{source}.csv', '--data-name', 'digits']
        code, answer, error = call(capsys, 'knn', FINETUNE, '--init', tmp_path / 'a.pth', *rows, '--cfg-options', *FEW)
        assert code == 0
        rank = r'seed 0 RankMe [\d.]+ of 48 features, block 2 of 2, 20 labeled images\n'
        assert re.fullmatch(rank + r'digits \S+ seed 0 k-NN, 2 labels: [\d.]+ %\n', answer), 'and nothing else'
        assert error.startswith(f'loaded 30/30 encoder tensors of {tmp_path}/a.pth [timm ViT')
        assert f'; {said}' in error.splitlines()[0]
        hashes.append(read_rows(tmp_path / f'{source}.csv')[0].checkpoint_hash)
    assert hashes[0] != hashes[1]


def test_training_says_which_weights_it_took(tmp_path, states):
    """In the line of the log about the loaded encoder."""
    from mmpretrain.registry import MODELS

    content, note = pairs(states)['facebookresearch']
    torch.save(content, tmp_path / 'a.pth')
    for source, said in (
        ('online', note),
        ('ema', "'model_ema' (averaged weights) is taken; --source raw takes 'model'"),
    ):
        cfg, _ = training_config(str(FINETUNE), init=str(tmp_path / 'a.pth'), source=source)
        model = MODELS.build(cfg.model)
        model.backbone.init_weights()
        line = str(model.backbone.load_report)
        assert re.match(
            rf'loaded 30/30 encoder tensors of {tmp_path}/a.pth \[timm ViT, (raw|averaged) weights\], ', line
        )
        assert f'; {said}' in line


def test_test_takes_either(tmp_path, states, capsys):
    """mmengine's EMAHook writes the average as state_dict, which is evaluated by default."""
    content, note = pairs(states)['mmengine']
    torch.save(content, tmp_path / 'a.pth')
    for source, said in (('online', note), ('raw', "'ema_state_dict' (raw weights) is taken; --source ema takes")):
        options = ['--work-dir', tmp_path / source, '--cfg-options', name(), 'test_dataloader.dataset.indices=40']
        code, out, error = call(capsys, 'test', FINETUNE, tmp_path / 'a.pth', '--source', source, *options)
        assert code == 0, error
        assert f'Load checkpoint from {tmp_path}/a.pth: {said}' in out


def test_pictures_say_which_weights_they_show(tmp_path, states, capsys):
    content, note = pairs(states)['facebookresearch']
    torch.save(content, tmp_path / 'a.pth')
    found = prepare(DrawOptions(str(tmp_path / 'a.pth'), images=['digits'], count=1, heads=3))
    assert found.title == 'a.pth [timm ViT, raw weights]'
    assert found.notes.startswith(f' Of this file {note}.')
    averaged = prepare(DrawOptions(str(tmp_path / 'a.pth'), images=['digits'], count=1, heads=3, source='ema'))
    assert torch.equal(averaged.model.cls_token, 0.5 * found.model.cls_token)


def test_weights_that_a_file_does_not_have(tmp_path, states, capsys):
    path = save(tmp_path / 'a.pth', states['cls'])
    messages = dict(
        ema='no averaged weights in this file: use source=online',
        momentum='no momentum encoder in this file: only BootMAE pretraining files have one; use source=online',
    )
    for source, message in messages.items():
        args = ['convert_checkpoint', path, '--to', 'timm', tmp_path / 'b.pth', '--source', source]
        assert call(capsys, *args)[::2] == (2, f'error: {path} was not exported: {message}\n')
    code, _, error = call(capsys, 'test', FINETUNE, path, '--source', 'ema', '--work-dir', tmp_path)
    assert (code, error.splitlines()[-1]) == (2, f'error: {path}: {messages["ema"]}')


# --- chance level ---


def test_an_accuracy_of_guessing_is_said(tmp_path, states, capsys):
    """An encoder without information: everything but one matrix is zero."""
    state = {key: torch.zeros_like(value) for key, value in states['run'].items()} | {WEIGHT: states['run'][WEIGHT]}
    path = save(tmp_path / 'a.pth', state)
    few = [FEW[0], 'test_dataloader.dataset.indices=100']
    code, out, error = call(capsys, 'knn', FINETUNE, '--init', path, '--tasks', 'knn', 'linear', '--cfg-options', *few)
    assert code == 0
    values = re.findall(r'labels: (\S+) %', out)
    assert [line for line in error.splitlines() if line.startswith('warning: ')] == [
        f'warning: {task}, 2 labels, block 2 of 2: an accuracy of {value} % on 100 images is at the chance level of '
        '10 classes (10.00 %). Check the weights, the input statistics (mean, std) and the labels'
        for task, value in zip(('knn', 'linear'), values, strict=True)
    ]


def test_a_test_at_chance_warns_in_its_log(tmp_path, states, capsys):
    """A classifier whose head is zero."""
    path = save(tmp_path / 'a.pth', states['cls'] | {'head.fc.weight': torch.zeros(10, 48)})
    options = ['--work-dir', tmp_path, '--cfg-options', name(), 'test_dataloader.dataset.indices=100']
    code, out, _ = call(capsys, 'test', FINETUNE, path, *options)
    assert code == 0
    assert re.search(r'WARNING - accuracy/top1: an accuracy of \S+ % on 100 images is at the chance level of 10', out)


def test_a_training_at_chance_warns_in_its_log(tmp_path, capsys):
    """One step with a tiny learning rate."""
    data = ['train_dataloader.dataset.indices=32', 'val_dataloader.dataset.indices=50', 'train_cfg.max_epochs=1']
    options = ['--work-dir', tmp_path, '--cfg-options', name(), *data, 'optim_wrapper.optimizer.lr=1e-5']
    code, out, error = call(capsys, 'train', FINETUNE, *options)
    assert code == 0, error
    assert re.search(r'WARNING - accuracy/top1: an accuracy of \S+ % on 50 images is at the chance level of 10', out)


def test_chance_limit():
    """Two standard errors above 1/C, by hand."""
    assert chance_limit(10, 100) == pytest.approx(16)
    assert chance_limit(2, 10_000) == pytest.approx(51)
    assert not chance_warning(16.01, 10, 100)
    assert chance_warning(15.99, 10, 100)
    assert chance_warning(0.0, 10, 100)
    assert not chance_warning(100.0, 1, 5)
    assert not chance_warning(100.0, 2, 2)
    assert not chance_warning(50.0, 2, 2)
