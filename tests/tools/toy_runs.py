"""The two debug configs in two steps: a few scenes, metrics that tell any two predictions apart; and their files."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, MODELS
from mmseg.evaluation import IoUMetric

from bootmae.checkpoints.keys import to_authors, to_timm
from bootmae.config.load import load_config
from bootmae.engine.hooks.provenance import ProvenanceHook

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DEBUG = dict(seg=CONFIGS / 'seg' / 'upernet_debug.py', det=CONFIGS / 'det' / 'mask_rcnn_debug.py')
TEXT = """
_base_ = {base!r}
custom_imports = dict(
    imports=['bootmae.registry', 'bootmae.data.scene_datasets', 'toy_runs'], allow_failed_imports=False)
scenes = dict(data_root={scenes!r}, scenes=dict(train=6, val=5))
train_dataloader = dict(batch_size=2, dataset=dict(indices=4, **scenes))
val_dataloader = dict(batch_size=1, dataset=scenes)
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=2)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
custom_hooks = [dict(type='StartWeights')]
"""
PARTS = dict(
    seg="""
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=-1), logger=dict(interval=1))
val_evaluator = dict(type='ClassIoU')
test_evaluator = val_evaluator
""",
    det="""
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1), logger=dict(interval=1))
coco = dict(type='CocoMetric', metric=['bbox', 'segm'], ann_file={scenes!r} + '/annotations/instances_val2017.json')
val_evaluator = [coco, dict(type='PredictionSum')]
test_evaluator = val_evaluator
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0)))
""",
)


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """mmseg's metric, which logs the IoU of each class, and here also gives it, unrounded."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        summary = super().compute_metrics(results)
        intersection, union = (sum(areas) for areas in list(zip(*results))[:2])
        return summary | {
            f'IoU_{name}': 100 * float(i / u)
            for name, i, u in zip(self.dataset_meta['classes'], intersection, union)
            if u
        }


@METRICS.register_module()
class PredictionSum(BaseMetric):
    """Sums over the instances found, which any change shows, also where nothing is right and AP is 0.

    The image's number weighs its sums, so that predictions of one image counted for another show too.
    """

    default_prefix = 'sum'

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        for sample in data_samples:
            found = sample['pred_instances']
            self.results.append(
                (
                    sample['img_id'],
                    *(float(value.double().sum()) for value in (found['scores'], found['bboxes'], found['masks'])),
                    float(len(found['labels'])),
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        names = ('scores', 'boxes', 'masks', 'instances')
        sums = {name: sum(row[0] * row[k + 1] for row in sorted(results)) for k, name in enumerate(names)}
        return sums | dict(images=float(len(results)), different_images=float(len({row[0] for row in results})))


def register_start_weights() -> None:
    """The hook ``StartWeights``: saves the backbone's weights of before the first step into the work directory."""
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    @HOOKS.register_module(force=True)
    class StartWeights(Hook):
        def before_train(self, runner):
            torch.save(runner.model.backbone.state_dict(), f'{runner.work_dir}/start.pth')


register_start_weights()


def write_config(folder: Path, task: str, scenes: Path, more: str = '') -> Path:
    """A config of a few seconds: ``seg`` or ``det``, with lines of its own at the end."""
    path = folder / f'{task}.py'
    path.write_text((TEXT + PARTS[task]).format(base=str(DEBUG[task]), scenes=str(scenes)) + more)
    return path


def pretraining_run(method: str) -> tuple[dict, dict]:
    """Content of a file of the demo's pretraining with random weights, and the encoder in it, under our names."""
    cfg = load_config(CONFIGS / 'pretrain' / f'{method}_demo_digits.py')
    torch.manual_seed(1)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.get('data_preprocessor')))
    model.init_weights()
    for name, value in model.named_parameters():
        if not name.endswith('pos_embed'):
            value.data.add_(0.05 * torch.randn_like(value))
    loop = SimpleNamespace(max_iters=700, dataloader=SimpleNamespace(dataset=range(700)))
    hook, runner = (
        ProvenanceHook(),
        SimpleNamespace(model=model, cfg=cfg, optim_wrapper=None, world_size=1, train_loop=loop),
    )
    hook.before_run(runner)
    content = dict(state_dict=model.state_dict(), optimizer={}, meta=dict(epoch=36, iter=700))
    hook.before_save_checkpoint(runner, content)
    return content, {
        key.removeprefix('backbone.'): value
        for key, value in content['state_dict'].items()
        if key.startswith('backbone.')
    }


def mae_decoder(width: int) -> dict:
    """What facebookresearch's MAE files have beside the encoder, of a decoder of one block (by name)."""
    return {
        'mask_token': torch.zeros(1, 1, 8),
        'decoder_pos_embed': torch.zeros(1, 37, 8),
        'decoder_embed.weight': torch.ones(8, width),
        'decoder_blocks.0.norm1.weight': torch.ones(8),
        'decoder_blocks.0.attn.qkv.weight': torch.ones(24, 8),
        'decoder_norm.weight': torch.ones(8),
        'decoder_pred.weight': torch.ones(192, 8),
    }


def write_files(folder: Path) -> dict[str, Path]:
    """Files of random weights at the demo's size, by format; all but ``mae`` hold the encoder of ``bootmae``."""
    run, encoder = pretraining_run('bootmae')
    online, momentum = to_authors(run['state_dict'])
    plain = to_timm(encoder)
    contents = dict(
        bootmae=run,
        mae=pretraining_run('mae')[0],
        authors=dict(model=online, model_ema=momentum, epoch=800, args=argparse.Namespace(lr=1.5e-4)),
        facebookresearch=dict(model=plain | mae_decoder(encoder['cls_token'].shape[-1])),
        timm=plain | {'head.weight': torch.ones(10, 64), 'head.bias': torch.ones(10)},
    )
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / f'{name}.pth'
        torch.save(content, paths[name])
    return paths
