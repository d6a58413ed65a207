"""Evaluation of five images on 1 and on 2 processes: the same to the last digit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_runs import write_config

from bootmae.commands.test import evaluate
from bootmae.commands.train import train
from bootmae.config.load import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
# In the config: numbers that processes of their own normalization could not agree on, were it used in evaluation.
MORE = dict(
    seg="""
norm_cfg = dict(type='SyncBN')
model = dict(decode_head=dict(norm_cfg=norm_cfg), auxiliary_head=dict(norm_cfg=norm_cfg))
""",
    det="""
train_cfg = dict(max_epochs=20, val_interval=20)
default_hooks = dict(checkpoint=dict(interval=20))
""",
)
CHECKPOINTS = dict(seg='iter_2.pth', det='epoch_20.pth')  # a detector needs some steps for an AP above zero
INFORMATIVE = dict(
    seg=['mIoU', 'aAcc', 'IoU_background'],
    det=['coco/bbox_mAP', 'sum/scores', 'sum/boxes', 'sum/masks', 'sum/instances'],
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> dict[str, tuple[Path, Path, dict]]:
    """By task: config, checkpoint of a short training, and its metrics on one process."""
    made, scenes = {}, tmp_path_factory.mktemp('scenes') / 'scenes'
    for task in ('seg', 'det'):
        folder = tmp_path_factory.mktemp(task)
        config = write_config(folder, task, scenes, MORE[task])
        names = ({'log_level': 'ERROR', 'experiment_name': f'processes_{task}_{name}'} for name in ('train', 'test'))
        train(str(config), str(folder / 'work'), next(names))
        checkpoint = folder / 'work' / CHECKPOINTS[task]
        made[task] = config, checkpoint, evaluate(str(config), str(checkpoint), str(folder / 'one'), next(names))
    return made


def test_processes_evaluate_alike(runs, tmp_path):
    """Both tasks in one start of the processes, as tools/dist_test.sh starts them."""
    script = tmp_path / 'evaluate.py'
    script.write_text(
        'from bootmae.commands.test import evaluate\n'
        + ''.join(
            f'evaluate({str(config)!r}, {str(checkpoint)!r}, {task!r}, dict(experiment_name={task!r}), "pytorch")\n'
            for task, (config, checkpoint, _) in runs.items()
        )
        + 'from bootmae.commands.cli import leave\nleave(0)\n'
    )
    path = os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', script],
        cwd=tmp_path,
        env=os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for task, (_, _, expected) in runs.items():
        found = json.loads(next((tmp_path / task).glob('*/[0-9]*.json')).read_text())
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-12, nan_ok=True)
        assert all(expected[key] > 0 for key in INFORMATIVE[task]), expected
    assert (found['sum/images'], found['sum/different_images']) == (5, 5), 'none is dropped, none counts twice'
    assert 'SyncBN needs GPUs: each process normalizes its own batch (BN)' in done.stdout + done.stderr


def test_the_order_of_categories_does_not_matter(runs, tmp_path):
    """Labels follow the names of the classes: with the categories of the file in reverse order the AP is the same."""
    config, checkpoint, expected = runs['det']
    file = next(Path(load_config(config).test_dataloader.dataset.data_root).rglob('instances_val*.json'))
    before = file.read_text()
    content = json.loads(before)
    content['categories'].reverse()
    try:
        file.write_text(json.dumps(content))
        options = {'log_level': 'ERROR', 'experiment_name': 'processes_reversed'}
        found = evaluate(str(config), str(checkpoint), str(tmp_path), options)
    finally:
        file.write_text(before)
    assert found['coco/segm_mAP'] == expected['coco/segm_mAP'] > 0.1
    assert found == pytest.approx(expected, nan_ok=True)
