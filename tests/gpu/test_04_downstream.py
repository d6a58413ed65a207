"""A training and an evaluation step of classification, UperNet, Mask R-CNN and ViTDet on a GPU, in bfloat16.

The full-size configs with a smaller ViT. Detectors run with mmcv's compiled ops and with the stand-in for them.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from rehearsal import REHEARSED, toy

from bootmae import compat

TASKS = ('cls', 'seg', 'det', 'vitdet')
DETECTORS = TASKS[2:]
SMALL = dict(cls=(224, 224), seg=(64, 64), det=(128, 160), vitdet=(224, 224))  # images of the rehearsal
OPS = {'compiled': sys.modules[compat.OPS], 'torchvision': None}
WRAPPERS = dict(float32='GuardedOptimWrapper', bfloat16='AutocastOptimWrapper')
# Relative differences between bfloat16 and float32, of losses and of scores. It rounds by 2^-9, in each of 12 blocks.
PRECISION_TOLERANCE = 1e-2
# Between the two implementations of NMS and RoIAlign: of losses, and the least share of boxes that must have a partner
# within PIXELS. On a CPU they are equal in float32. Logits in bfloat16 have so few values that many proposals are
# equally good, and the two sort those otherwise: 3e-3 and 0.92 on a CPU.
OPS_TOLERANCE = dict(float32=1e-3, bfloat16=3e-2)
MATCHED = dict(float32=0.95, bfloat16=0.8)
PIXELS = 0.5

needs_compiled = pytest.mark.skipif(
    not hasattr(OPS['compiled'], '__file__'), reason='mmcv has no compiled ops here to compare with'
)


class Task(SimpleNamespace):
    """A model whose weights go back to those of the start, and batches of noise.

    Attributes:
        cfg: of our config, shrunk.
        model: on the device.
        start: its state dict.
        batch: makes a batch, the same each time.
    """

    cfg: Config
    model: torch.nn.Module
    start: dict[str, torch.Tensor]
    batch: Callable[[], dict]


@pytest.fixture(scope='module')
def task_of(device) -> Callable[[str], Task]:
    """``task_of(name)``, built once."""
    built: dict[str, Task] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[2] / 'benchmarks')
        import downstream

        if REHEARSED:
            for name, size in SMALL.items():
                patch.setitem(downstream.IMAGES['tiny'], name, size)

        def build(name: str) -> Task:
            if name not in built:
                size = downstream.IMAGES['tiny'][name]
                options = (
                    dict.fromkeys(
                        ('model.data_preprocessor.test_cfg.size', 'model.test_cfg.crop_size', 'model.test_cfg.stride'),
                        size,
                    )
                    if name == 'seg'
                    else {}
                )
                if name in DETECTORS:
                    options = {
                        'model.test_cfg.rcnn.score_thr': 0.0,
                        'model.test_cfg.rcnn.max_per_img': 50,
                        'model.test_cfg.rpn.max_per_img': toy(1000, 100),
                    }
                options['model.backbone.drop_path_rate'] = 0.0  # it draws other random numbers in bfloat16
                cfg = downstream.our_config(name, 'tiny', options)
                cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
                torch.manual_seed(0)
                with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
                    model = MODELS.build(cfg.model)
                    model.init_weights()
                    for value in model.parameters():  # so that boxes and classes differ
                        value.data.add_(0.02 * torch.randn_like(value))
                    model = model.to(device)
                start = {key: value.clone() for key, value in model.state_dict().items()}
                built[name] = Task(
                    cfg=cfg, model=model, start=start, batch=lambda: downstream.batch_of(name, size, 2, device)
                )
            return built[name]

        yield build


def use_ops(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Let NMS and RoIAlign be mmcv's compiled ones, or torchvision's."""
    ops = OPS['compiled'] if kind == 'compiled' else compat._make_standin_ops()
    for module in ('mmcv.ops.nms', 'mmcv.ops.roi_align'):
        monkeypatch.setattr(sys.modules[module], 'ext_module', ops)


def train(task: Task, precision: str) -> dict[str, float]:
    """The losses of a training step, which changes the weights and leaves them finite."""
    task.model.load_state_dict(task.start)
    cfg = {key: value for key, value in task.cfg.optim_wrapper.items() if key not in ('type', 'dtype', 'loss_scale')}
    with DefaultScope.overwrite_default_scope(task.cfg.get('default_scope', 'mmpretrain')):
        wrapper = build_optim_wrapper(task.model, dict(cfg, type=WRAPPERS[precision], accumulative_counts=1))
    np.random.seed(1)  # of mixup
    torch.manual_seed(1)
    losses = {name: value.item() for name, value in task.model.train().train_step(task.batch(), wrapper).items()}
    assert wrapper.nonfinite.item() == 0
    state = task.model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    assert sum(not torch.equal(value, task.start[name]) for name, value in state.items()) > 50
    return losses


def predict(task: Task, precision: str) -> list:
    """The data samples of an evaluation step."""
    task.model.load_state_dict(task.start)
    task.model.eval()
    enabled, device = precision == 'bfloat16', next(task.model.parameters()).device.type
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=enabled):
        return task.model.test_step(task.batch())


def largest_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Of losses, relative; accuracies are left out."""
    assert ours.keys() == theirs.keys()
    losses = {name: (value, theirs[name]) for name, value in ours.items() if 'loss' in name}
    print({name: f'{a:.5f} / {b:.5f}' for name, (a, b) in losses.items()})
    assert all(b > 0 for _, b in losses.values())
    return max(abs(a / b - 1) for a, b in losses.values())


@pytest.fixture
def same_proposals(monkeypatch) -> Callable[[Task], None]:
    """``same_proposals(task)`` lets all training steps of a detector have the proposals of the first one.

    In another precision some other proposals are kept, and other ones are drawn from them at random. The losses of
    boxes and masks then differ by up to 9 % on a CPU, and by 0.3 % with the same proposals.
    """
    found: list = []

    def once(find: Callable) -> Callable:
        def proposals(*args, **kwargs) -> list:
            found[:] = found or find(*args, **kwargs)
            return copy.deepcopy(found)  # the detector writes labels into them

        return proposals

    return lambda task: monkeypatch.setattr(
        task.model.rpn_head, 'predict_by_feat', once(task.model.rpn_head.predict_by_feat)
    )


@pytest.mark.parametrize('name', TASKS)
def test_a_training_step(device, task_of, same_proposals, name):
    """In bfloat16 with the default ops: the losses of float32."""
    task = task_of(name)
    if name in DETECTORS:
        same_proposals(task)
    error = largest_difference(*reversed([train(task, precision) for precision in WRAPPERS]))
    print(f'{name}: largest relative difference of a loss {error:.1e}')
    assert error <= PRECISION_TOLERANCE


def scores_of(name: str, samples: list) -> torch.Tensor:
    """What an evaluation says of each image or pixel, before the largest is taken."""
    return torch.stack([sample.pred_score if name == 'cls' else sample.seg_logits.data for sample in samples]).float()


@pytest.mark.parametrize('name', TASKS[:2])
def test_an_evaluation_step(device, task_of, name):
    short, exact = (scores_of(name, predict(task_of(name), precision)) for precision in ('bfloat16', 'float32'))
    error = float((short - exact).norm() / exact.norm())
    print(f'{name}: scores {tuple(exact.shape)}, relative difference {error:.1e}')
    assert error <= PRECISION_TOLERANCE


@pytest.mark.parametrize('name', DETECTORS)
def test_an_evaluation_step_of_a_detector(device, task_of, name):
    """In bfloat16, with the default ops: the stand-in, where mmcv has no others."""
    for sample in predict(task_of(name), 'bfloat16'):
        found = sample.pred_instances
        assert len(found) > 10
        assert found.bboxes.isfinite().all()
        assert found.masks.shape[1:] == sample.ori_shape


@needs_compiled
@pytest.mark.parametrize('precision', WRAPPERS)
@pytest.mark.parametrize('name', DETECTORS)
def test_both_ops_train_alike(device, task_of, monkeypatch, name, precision):
    losses = []
    for kind in OPS:
        use_ops(monkeypatch, kind)
        losses.append(train(task_of(name), precision))
    error = largest_difference(*losses)
    print(f'{name} in {precision}: largest relative difference of a loss {error:.1e}')
    assert error <= OPS_TOLERANCE[precision]


@needs_compiled
@pytest.mark.parametrize('precision', WRAPPERS)
@pytest.mark.parametrize('name', DETECTORS)
def test_both_ops_find_the_same_boxes(device, task_of, monkeypatch, name, precision):
    found = []
    for kind in OPS:
        use_ops(monkeypatch, kind)
        found.append([sample.pred_instances for sample in predict(task_of(name), precision)])
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) > 10
        assert ours.masks.any()
        assert not ours.masks.all()
        share = min(matched(ours, theirs), matched(theirs, ours))
        print(f'{name} in {precision}: {len(ours)} and {len(theirs)} boxes, {share:.1%} with a partner')
        assert share >= MATCHED[precision]


def matched(ours, theirs) -> float:
    """Share of the instances of which the others have one of the same class in the same place."""
    distance = torch.cdist(ours.bboxes.float(), theirs.bboxes.float(), p=torch.inf)
    distance[ours.labels[:, None] != theirs.labels] = torch.inf
    return (distance.min(dim=1).values <= PIXELS).float().mean().item()
