"""A run that stops in a validation saves the weights in training, whatever is being evaluated."""

import os
import signal

import pytest
import torch
from mmengine.hooks import Hook
from survivors import toy_runner, validated

from bootmae.checkpoints import read_checkpoint
from bootmae.distributed.exits import Requeue


class Signal(Hook):
    """Sends SIGTERM in the n-th batch of the evaluations of the first epoch, which have two batches each."""

    priority = 'HIGHEST'

    def __init__(self, at: int):
        self.at = at

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.at -= 1
        if self.at == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ('average', 'at'),
    [
        (dict(type='EMAHook'), 1),
        (dict(type='mmpretrain.EMAHook'), 2),
        (dict(type='mmpretrain.EMAHook', evaluate_on_ema=False, evaluate_on_origin=True), 1),
        (dict(type='mmpretrain.EMAHook', evaluate_on_origin=True), 2),
        (dict(type='mmpretrain.EMAHook', evaluate_on_origin=True), 3),  # in its second evaluation, that of raw weights
    ],
)
def test_averages_of_the_weights_are_not_exchanged(tmp_path, average, at):
    hooks = {
        'custom_hooks': [dict(average, momentum=0.1, priority='ABOVE_NORMAL')],
        'default_hooks.preemption': dict(type='PreemptionHook'),
    }

    def run(name: str, scores: list[float], *others: Hook, resume: bool = False) -> dict:
        runner = toy_runner(tmp_path / name, dict(interval=2), epochs=2, resume=resume, **hooks, **validated(scores))
        for hook in others:
            runner.register_hook(hook)
        runner.train()
        return read_checkpoint(tmp_path / name / 'epoch_2.pth')

    whole = run('whole', [0.0] * 4)
    with pytest.raises(Requeue, match='SIGTERM: saved .*step_4.pth'):
        run('cut', [0.0] * 2, Signal(at))
    rest = run('cut', [0.0] * 4, resume=True)
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(rest[part][key], value) for key, value in whole[part].items())
    raw, mean = whole['ema_state_dict']['module.linear.weight'], whole['state_dict']['linear.weight']
    assert not torch.equal(raw, mean)
