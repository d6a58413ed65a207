"""Plans: their arithmetic by hand, and their iterations against a real run."""

import re
from pathlib import Path

import pytest

from bootmae.commands.plan import as_text, build_on_meta, check_loader, floor_lr, gflop_per_image, make_plan, warmup
from bootmae.commands.train import train
from bootmae.config.checks import metric_configs
from bootmae.config.load import load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PRETRAIN, CLS, SEG, DET = (CONFIGS / name for name in ('pretrain', 'cls', 'seg', 'det'))
ALL = {f'{path.parent.name}/{path.stem}': path for path in sorted(CONFIGS.glob('[!_]*/*.py'))}


def plan_of(path: Path, gpus: int = 1, images_per_second: float | None = None, scale_lr: bool = False, **options):
    cfg = load_config(path, {key.replace('__', '.'): value for key, value in options.items()})
    return make_plan(cfg, str(path), gpus, scale_lr, images_per_second)


# --- arithmetic, a multiply-add counting as two ---


def attention(queries: int, tokens: int, inner: int) -> int:
    """Scores and the weighted sum, all heads."""
    return 2 * 2 * queries * tokens * inner


def block(queries: int, tokens: int, width: int) -> int:
    """An encoder block that works out ``queries`` of its tokens: q, k and v, attention, proj, MLP."""
    linear = queries * width**2 + 2 * tokens * width**2 + queries * width**2 + 8 * queries * width**2
    return 2 * linear + attention(queries, tokens, width)


def decoder(masked: int, context: int, width: int, inner: int, encoder: int, out: int) -> int:
    """A decoder of one block, whose queries are the masked tokens."""
    tokens = masked + context
    own = masked * width * inner + 2 * tokens * width * inner + masked * inner * width
    cross = masked * width * inner + 2 * context * encoder * inner + masked * inner * width
    linear = context * encoder * width + own + cross + 8 * masked * width**2 + masked * width * out
    return 2 * linear + attention(masked, tokens, inner) + attention(masked, context, inner)


def test_arithmetic_of_pretraining_by_hand():
    """The debug size: 64 patches of 4 x 4, 48 masked, width 48, 2 blocks; pixel decoder 32 wide, 3 heads of 10."""
    width, patches, masked, pixels = 48, 64, 48, 48
    visible, whole = 1 + patches - masked, 1 + patches
    trained = (
        2 * block(visible, visible, width)
        + decoder(masked, visible, 32, 30, width, pixels)
        + decoder(masked, visible, width, width, width, width)
    )
    embed = 2 * pixels * width
    momentum = embed * patches + block(whole, whole, width) + block(masked, whole, width)
    # backward costs twice the forward pass, and half of that where the input, the image, needs no gradient
    by_hand = 3 * trained + 2 * embed * (patches - masked) + momentum
    cfg = load_config(PRETRAIN / 'bootmae_debug.py')
    assert gflop_per_image(build_on_meta(cfg), 'pretraining') * 1e9 == pytest.approx(by_hand, abs=1)
    assert make_plan(cfg, '', 1).gflop_per_image == round(by_hand / 1e9, 2)


def test_arithmetic_of_finetuning_and_probing_by_hand():
    width, tokens, classes = 48, 65, 10
    head, embed = 2 * width * classes, 2 * 48 * width * 64
    blocks = 2 * block(tokens, tokens, width)
    for options, by_hand in (
        ({}, 3 * (blocks + head) + 2 * embed),
        ({'model.backbone.frozen': True}, blocks + embed + 2 * head),
    ):
        cfg = load_config(CLS / 'bootmae_debug_finetune.py', options)
        assert gflop_per_image(build_on_meta(cfg), 'classification') * 1e9 == pytest.approx(by_hand, abs=1)


# --- batch, schedule, size ---


def test_the_authors_recipe_on_8_gpus():
    with pytest.raises(ValueError, match='--images-per-second 0: give a positive number'):
        plan_of(PRETRAIN / 'bootmae_vitb.py', images_per_second=0)
    plan = plan_of(PRETRAIN / 'bootmae_vitb.py', gpus=8, images_per_second=1000)
    assert plan.warmup_updates == 40 * 312
    assert (plan.batch_per_gpu, plan.accumulation, plan.global_batch) == (512, 1, 4096)
    assert (plan.lr, plan.min_lr, plan.weight_decay) == (pytest.approx(2.4e-3), 1e-4, 0.05)
    assert (plan.epochs, plan.warmup_epochs, plan.precision) == (801, 40, 'bf16 autocast')
    assert (plan.params, plan.layer_decay) == (115_373_251, None)
    assert list(map(tuple, plan.ema)) == [(0, 0.999), (100, 0.9999), (400, 0.99999)]
    assert plan.train_images == 1_281_167, 'stated in the config, since the images are not here'
    # floor(1281167 / 8) = 160145 images a GPU and epoch, of which 312 whole batches
    assert (plan.iterations, plan.updates) == (801 * 312, 801 * 312)
    assert plan.images == 801 * 312 * 4096
    assert plan.gpu_hours == round(plan.images / 1000 / 3600, 1)


def test_fewer_gpus_accumulate():
    plan = plan_of(PRETRAIN / 'bootmae_vitb.py', gpus=4)
    assert (plan.accumulation, plan.global_batch, plan.lr) == (2, 4096, pytest.approx(2.4e-3))
    assert (plan.iterations, plan.updates) == (801 * 312 * 2, 801 * 312)  # the optimizer steps of 8 GPUs
    assert plan.gpu_hours is None


def test_three_gpus_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r'3 GPUs do not divide it: use one of \[1, 2, 4, 8, .*--auto-scale-lr'):
        plan_of(PRETRAIN / 'bootmae_vitb.py', gpus=3)
    plan = plan_of(PRETRAIN / 'bootmae_vitb.py', gpus=3, scale_lr=True)
    assert (plan.global_batch, plan.lr) == (1536, pytest.approx(1.5e-4 * 1536 / 256))


def test_downstream_plans():
    tune = plan_of(CLS / 'bootmae_vitl_finetune.py', gpus=8)
    assert (tune.layer_decay, tune.global_batch, tune.warmup_epochs) == (0.75, 1024, 5)
    assert tune.ema == [[0, pytest.approx(0.9998)]]
    probe = plan_of(CLS / 'mae_vitb_linear.py', gpus=8)
    assert (probe.accumulation, probe.ema, probe.precision) == (2, None, 'bf16 autocast')
    assert probe.params == 768 * 1000 + 1000, 'the head alone: the batch norm has no weights'
    assert probe.frozen_params > 85e6
    assert probe.input_mean == [123.675, 116.28, 103.53]


def test_segmentation_recipe():
    """Counted in iterations: 160 thousand of 16 images, by accumulation on fewer GPUs."""
    whole, two = (plan_of(SEG / 'bootmae_vitb_upernet.py', gpus=gpus, images_per_second=50) for gpus in (8, 2))
    assert (whole.accumulation, two.accumulation) == (1, 4)
    assert (whole.iterations, two.iterations) == (160_000, 640_000)
    for plan in (whole, two):
        assert (plan.global_batch, plan.lr, plan.min_lr, plan.weight_decay) == (16, 4e-4, 0.0, 0.05)
        assert (plan.layer_decay, plan.ema, plan.precision) == (0.65, None, 'bf16 autocast')
        assert (plan.updates, plan.warmup_updates, plan.images) == (160_000, 1500, 160_000 * 16)
        assert (plan.train_images, plan.epochs) == (20_210, round(160_000 * 16 / 20_210, 2))
        assert plan.warmup_epochs == round(1500 * 16 / 20_210, 2)
        assert plan.gpu_hours == round(160_000 * 16 / 50 / 3600, 1)


def test_detection_recipes():
    """One counted in epochs, one in iterations with accumulation."""
    plan = plan_of(DET / 'bootmae_vitb_maskrcnn_1x.py', gpus=8)
    assert (plan.epochs, plan.global_batch, plan.layer_decay) == (12, 16, 0.75)
    assert (plan.lr, plan.min_lr) == (1.5e-4, pytest.approx(1.5e-6)), 'two milestones'
    # 117266 images with an object, 14659 for a GPU
    assert plan.iterations == plan.updates == 12 * -(-14_659 // 2)
    assert plan.gflop_per_image is None
    plan = plan_of(DET / 'mae_vitb_vitdet.py', gpus=8)
    assert (plan.accumulation, plan.iterations, plan.updates) == (2, 2 * 184_375, 184_375)
    assert (plan.warmup_updates, plan.epochs) == (250, round(184_375 * 64 / 117_266, 2))
    assert (plan.lr, plan.min_lr) == (1e-4, pytest.approx(1e-6))
    assert plan.input_mean == [123.675, 116.28, 103.53]


def conv(outputs: int, kernel: int, channels_in: int, channels_out: int) -> int:
    return 2 * outputs * kernel**2 * channels_in * channels_out


def test_arithmetic_of_segmentation_by_hand():
    """A ViT of 2 blocks without pyramid under one FCN head of one convolution."""
    options = {
        'model.backbone.pyramid': None,
        'model.backbone.arch': dict(embed_dims=24, depth=2, num_heads=2),
        'model.backbone.relative_positions': False,
        'model.backbone.layer_scale': None,
        'model.backbone.img_size': (32, 48),
        'model.auxiliary_head': None,
        'model.decode_head': dict(
            _delete_=True,
            type='FCNHead',
            in_channels=24,
            in_index=0,
            channels=16,
            num_convs=1,
            concat_input=False,
            num_classes=11,
            norm_cfg=dict(type='SyncBN'),
        ),
    }
    patches, width = 24, 24
    forward = 2 * block(25, 25, width) + conv(patches, 3, width, 16) + conv(patches, 1, 16, 11)
    embed = 2 * 3 * 64 * width * patches
    cfg = load_config(SEG / 'upernet_debug.py', options)
    gflop = gflop_per_image(build_on_meta(cfg), 'segmentation')
    assert gflop * 1e9 == pytest.approx(3 * forward + 2 * embed, abs=1)


@pytest.fixture(scope='module')
def empty_folder(tmp_path_factory) -> Path:
    """A folder to plan in. All configs share it, because some draw their data set there."""
    return tmp_path_factory.mktemp('plans')


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith(('pretrain', 'cls')) or 'scenes' in name else [])
        for name in ALL
    ],
)
def test_every_config_plans(name, empty_folder, monkeypatch):
    """For the GPUs that its opening comment names, or one, with images stated if they are not here."""
    monkeypatch.chdir(empty_folder)
    cfg = load_config(ALL[name])
    cfg.train_images = cfg.get('train_images') or 1000
    text = ALL[name].read_text()
    gpus = int(match[1]) if (match := re.search(r'Hardware: (\d+) GPUs', text)) else 1
    plan = make_plan(cfg, name, gpus)
    assert plan.global_batch == cfg.auto_scale_lr.base_batch_size
    assert plan.min_lr < plan.lr
    whole_batches = plan.train_images // plan.global_batch * plan.global_batch
    assert plan.epochs == pytest.approx(plan.images / plan.train_images, rel=0.02, abs=0.01) or (
        plan.images == plan.epochs * whole_batches  # of few images, the incomplete batch is more than 2 %
    )
    assert (plan.gflop_per_image is None) == name.startswith('det/')
    assert all(value != '' for value in as_text(plan).splitlines())


def test_plans_take_no_memory():
    model = build_on_meta(load_config(PRETRAIN / 'bootmae_vitl.py'))
    assert all(value.is_meta for value in model.parameters())


def test_schedules_of_mmengine_are_understood():
    for path, expected in ((PRETRAIN / 'mae_vitb.py', (40, 0.0)), (CLS / 'mae_vitb_finetune.py', (5, 1e-6))):
        cfg = load_config(path)
        assert (warmup(cfg), floor_lr(cfg)) == ((expected[0], True), expected[1])
    cfg = load_config(PRETRAIN / 'mae_vitb.py')
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-5)]
    assert (warmup(cfg), floor_lr(cfg)) == ((0, True), 1e-5)
    cfg.param_scheduler = dict(type='ConstantLR', factor=1.0)
    assert (warmup(cfg), floor_lr(cfg)) == ((0, True), cfg.optim_wrapper.optimizer.lr)


# --- images and iterations ---


@pytest.mark.parametrize(
    'options',
    [
        dict(train_dataloader__batch_size=16),
        dict(train_dataloader__drop_last=False, train_dataloader__dataset__indices=70),
        dict(train_dataloader__drop_last=True, train_dataloader__dataset__indices=70),
    ],
)
def test_iterations_are_those_of_a_run(tmp_path, options):
    """The debug config: 160 digits in 10 batches, two to an update, or 70 whose last batch is incomplete."""
    options = dict(train_cfg__max_epochs=1) | options
    plan = plan_of(PRETRAIN / 'bootmae_debug.py', **options)
    name = '_'.join(map(str, options.values()))
    dotted = {key.replace('__', '.'): value for key, value in options.items()}
    runner = train(
        str(PRETRAIN / 'bootmae_debug.py'),
        str(tmp_path),
        dotted | dict(experiment_name=f'plan_{name}', log_level='ERROR'),
    )
    assert plan.iterations == runner.iter == runner.max_iters
    assert plan.train_images == len(runner.train_dataloader.dataset)
    assert plan.params == sum(value.numel() for value in runner.model.parameters() if value.requires_grad)
    assert plan.frozen_params == sum(value.numel() for value in runner.model.parameters() if not value.requires_grad)
    steps = {int(state['step']) for state in runner.optim_wrapper.optimizer.state.values()}
    assert steps == {plan.updates}


def test_images_at_hand_are_counted(tmp_path):
    for split in ('one', 'two'):
        (tmp_path / split).mkdir()
        (tmp_path / split / 'image.jpg').touch()
    plan = plan_of(
        PRETRAIN / 'bootmae_small_data.py',
        train_dataloader__dataset__roots=str(tmp_path),
        gpus=2,
        train_dataloader__batch_size=1,
        auto_scale_lr__base_batch_size=2,
        train_cfg__max_epochs=30,
    )
    assert (plan.train_images, plan.iterations, plan.images) == (2, 30, 60)


@pytest.mark.parametrize(
    'evaluator',
    [
        dict(type='Accuracy', topk=(1,)),
        [dict(type='Accuracy', topk=(1,))],
        dict(metrics=dict(type='Accuracy', topk=(1,))),
        dict(type='Evaluator', metrics=[dict(type='Accuracy', topk=(1,))]),
    ],
)
def test_any_form_of_an_evaluator(evaluator):
    cfg = load_config(CLS / 'bootmae_debug_finetune.py')
    cfg.val_evaluator = evaluator
    assert [metric.type for metric in metric_configs(cfg, 'val')] == ['Accuracy']
    assert check_loader(cfg, 'val', build_on_meta(cfg)) == 500
    cfg.val_evaluator = None
    assert metric_configs(cfg, 'val') == []


def test_missing_images_need_a_number():
    cfg = load_config(PRETRAIN / 'bootmae_small_data.py')
    cfg.pop('train_images')
    with pytest.raises(FileNotFoundError, match='data/images does not exist'):
        make_plan(cfg, '', 1)


def test_text():
    lines = dict(line.split(None, 1) for line in as_text(plan_of(PRETRAIN / 'bootmae_debug.py')).splitlines())
    assert lines['global_batch'] == '32'
    assert lines['warmup_epochs'] == '0.4'
    assert 'gpu_hours' not in lines, 'unknown without a speed'


@pytest.mark.parametrize(
    ('hooks', 'ema'),
    [
        ([dict(type='EMAHook')], [[0, 1 - 0.0002]]),
        ([dict(type='EMAHook', momentum=0.01)], [[0, 0.99]]),
        ([dict(type='BootMAEHook')], [(0, 0.999), (100, 0.9999), (400, 0.99999)]),
        ([dict(type='BootMAEHook', ema=[(0, 0.9)])], [(0, 0.9)]),
        ([], None),
    ],
)
def test_averages_of_weights(hooks, ema):
    assert plan_of(PRETRAIN / 'mae_debug.py', custom_hooks=hooks).ema == ema


def test_an_optimizer_wrapper_of_the_user():
    assert plan_of(PRETRAIN / 'mae_debug.py', optim_wrapper__type='ApexOptimWrapper').precision == 'ApexOptimWrapper'
