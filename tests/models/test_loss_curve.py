"""The losses of the first 200 pretraining steps equal the stored ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from bootmae.commands.train import train
from bootmae.report.curves import read_curve
from bootmae.results.provenance import REPOSITORY

CURVE = Path(__file__).parents[1] / 'golden' / 'loss_curve.json'
OPTIONS = {
    'train_cfg.max_epochs': 40,
    'log_level': 'ERROR',
    'experiment_name': 'loss_curve',
    'default_hooks.checkpoint.interval': 1000,
}
# Other instruction sets (AVX2, none) and another number of threads moved no loss by more than 4e-7.
TOLERANCE = 1e-4


@pytest.mark.slow
def test_200_steps(tmp_path):
    train(str(REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'), str(tmp_path), dict(OPTIONS))
    curve, stored = read_curve('', tmp_path), json.loads(CURVE.read_text())
    assert curve.steps.tolist() == list(range(1, 201))
    for name in ('loss_pixel', 'loss_feature'):
        np.testing.assert_allclose(curve.values[name], stored[name], rtol=TOLERANCE, err_msg=name)
    assert np.mean(stored['loss_pixel'][-20:]) < 0.8 * np.mean(stored['loss_pixel'][:20])
