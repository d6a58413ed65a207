"""A metric without a value is left out of the results, and a run without its main metric ends."""

import numpy as np
import pytest
from mmengine.hooks import RuntimeInfoHook
from mmengine.runner.priority import get_priority

from bootmae.engine.hooks import results
from bootmae.engine.hooks.results import NoResultHook, drop_missing

NAN = float('nan')


def test_metrics_without_a_value_are_left_out(monkeypatch):
    told = []
    monkeypatch.setattr(results, 'print_log', lambda text, **_: told.append(text))
    metrics = {
        'coco/bbox_mAP': 0.5,
        'coco/bbox_mAP_s': -1.0,
        'coco/segm_mAP_l': np.float32(-1),
        'AR@100': -1.0,
        'mAcc': NAN,
        'loss': -1.0,
        'name': 'x',
        'accuracy/top1': 0.0,
    }
    drop_missing(metrics)
    assert metrics == {'coco/bbox_mAP': 0.5, 'loss': -1.0, 'name': 'x', 'accuracy/top1': 0.0}
    missing = 'coco/bbox_mAP_s, coco/segm_mAP_l, AR@100, mAcc'
    assert told == [f'without a result, since nothing of the kind is annotated: {missing}']
    drop_missing(None)


@pytest.mark.parametrize('name, value', [('coco/bbox_mAP', -1.0), ('coco/segm_mAP', -1), ('mIoU', NAN)])
@pytest.mark.parametrize('event', ['after_val_epoch', 'after_test_epoch'])
def test_a_run_without_its_main_metric_ends(name, value, event):
    with pytest.raises(
        ValueError, match=f'{name} cannot be computed: .* check ann_file, the class names and the masks'
    ):
        getattr(NoResultHook(), event)(None, {'aAcc': 1.0, name: value})


def test_it_comes_before_the_hook_that_hands_metrics_to_the_log():
    assert get_priority(NoResultHook.priority) < get_priority(RuntimeInfoHook.priority)
