"""Runs in processes of their own: killed, stopped by a signal, under NCCL, and what they leave and return."""

import json

import pytest
import torch
from processes import STEPS, TIMEOUT
from rehearsal import REHEARSED

SECONDS = 4 * TIMEOUT  # they wait for all that is in front of them
# Of the final weights, with and without NCCL, which divides gradients by the number of processes, here one.
WEIGHTS = dict(rtol=1e-4, atol=1e-6)
ON_DEVICE = 'on cpu' if REHEARSED else 'on cuda'
BACKEND = 'gloo' if REHEARSED else 'nccl'


def same(ours: object, theirs: object) -> bool:
    """Whether nested dicts and lists have the same tensors and numbers."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


@pytest.mark.runs('whole', 'killed')
def test_a_killed_run_goes_on_bit_for_bit(device, runs):
    """Deterministic, in bfloat16: weights, momentum encoder and optimizer at the end are those of an unbroken run."""
    (whole,), (killed, resumed) = runs('whole'), runs('killed')
    assert whole.code == 0, whole.printed[-2000:]
    assert f'{ON_DEVICE}, no exchange, deterministic True' in whole.printed
    assert killed.code == -9, killed.printed[-2000:]
    assert resumed.code == 0, resumed.printed[-2000:]
    assert killed.content('iter_4.pth')['meta']['iter'] == 4
    for part in ('state_dict', 'optimizer'):
        assert same(resumed.content()[part], whole.content()[part]), part
    assert not same(killed.content('iter_4.pth')['state_dict'], whole.content()['state_dict'])


@pytest.mark.runs('whole', 'stopped')
def test_a_run_under_nccl_saves_at_a_signal_and_goes_on(device, runs):
    """`tools/dist_train.sh CONFIG 1`, SIGTERM, exit code 75, `--resume`."""
    (whole,), (stopped, resumed) = runs('whole'), runs('stopped')
    assert stopped.code == 75, stopped.printed[-2000:]
    assert f'{ON_DEVICE}, {BACKEND}, deterministic True' in stopped.printed
    assert 'Traceback' not in stopped.printed
    assert 'saved ' in stopped.printed
    assert resumed.code == 0, resumed.printed[-2000:]
    assert resumed.content()['meta']['iter'] == STEPS
    ours, theirs = resumed.content()['state_dict'], whole.content()['state_dict']
    print('largest difference of a weight', max((ours[k] - theirs[k]).abs().max().item() for k in theirs))
    torch.testing.assert_close(ours, theirs, **WEIGHTS)


@pytest.mark.runs('poisoned')
def test_losses_that_stay_not_finite_end_a_run(device, runs):
    """With exit code 3, after three of them, and the weights of before."""
    (run,) = runs('poisoned')
    assert run.code == 3, run.printed[-2000:]
    assert 'were not finite 3 times in a row, in iterations 5, 6, 7' in run.printed
    dump = json.loads((run.work_dir / 'nonfinite' / 'step_5_rank0.json').read_text())
    assert dump['iteration'] == 5
    weights = run.content('nonfinite/stopped_5.pth')['state_dict']
    assert all(value.isfinite().all() for name, value in weights.items() if not name.startswith('data_preprocessor'))


@pytest.mark.runs('mistaken')
def test_a_mistake_of_the_user(device, runs):
    """Exit code 2, and one line."""
    (run,) = runs('mistaken')
    assert run.code == 2, run.printed[-2000:]
    assert 'error: ' in run.printed
    assert 'Traceback' not in run.printed
