"""The choice of the checkpoint that a run resumes from, and the checks of it."""

import copy
import os
import re
from pathlib import Path

import pytest
import torch

from bootmae.checkpoints import resume
from bootmae.checkpoints.resume import check_facts, check_optimizer, choose_checkpoint, find_newest
from bootmae.checkpoints.write import write_checkpoint
from bootmae.files import remove_stale


def run_file(path: Path, iteration: int, mark: bool = True) -> Path:
    content = dict(meta=dict(epoch=0, iter=iteration), state_dict={'a': torch.arange(50.0)}, optimizer={})
    if mark:
        write_checkpoint(path, content)
    else:
        torch.save(content, path)
    return path


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_most_iterations_and_not_the_name_or_the_date(tmp_path):
    for name, iteration in (
        ('epoch_3.pth', 30),
        ('epoch_20.pth', 25),
        ('step_35.pth', 35),
        ('iter_9.pth', 9),
        ('best_acc_epoch_99.pth', 990),
        ('other.pth', 991),
    ):
        run_file(tmp_path / name, iteration)
    assert find_newest(tmp_path).path.name == 'step_35.pth'
    run_file(tmp_path / 'epoch_4.pth', 35)
    assert find_newest(tmp_path).path.name == 'epoch_4.pth', 'written after the one within the epoch'
    (tmp_path / 'step_35.pth').unlink()
    (tmp_path / 'epoch_4.pth').unlink()
    found = find_newest(tmp_path)
    assert (found.path.name, found.content['meta']['iter'], found.skipped) == ('epoch_3.pth', 30, [])


def test_damaged_files_are_skipped_and_named(tmp_path):
    for k in (1, 2, 3, 4):
        run_file(tmp_path / f'epoch_{k}.pth', 10 * k)
    damage(tmp_path / 'epoch_3.pth')
    data = (tmp_path / 'epoch_4.pth').read_bytes()
    (tmp_path / 'epoch_4.pth').write_bytes(data[:-200])
    (tmp_path / 'epoch_5.pth').write_bytes(b'')
    said = []
    assert choose_checkpoint(tmp_path, said.append).path.name == 'epoch_2.pth'
    assert [re.match(r'skipped (\S+): .* is damaged', line)[1] for line in sorted(said)] == [
        'epoch_3.pth',
        'epoch_4.pth',
        'epoch_5.pth',
    ]


def test_files_of_older_versions(tmp_path):
    run_file(tmp_path / 'epoch_1.pth', 10, mark=False)
    run_file(tmp_path / 'epoch_2.pth', 20, mark=False)
    (tmp_path / 'epoch_3.pth').write_bytes((tmp_path / 'epoch_2.pth').read_bytes()[:-300])
    found = find_newest(tmp_path)
    assert (found.path.name, [path.name for path, _ in found.skipped]) == ('epoch_2.pth', ['epoch_3.pth'])
    run_file(tmp_path / 'epoch_4.pth', 15)
    assert find_newest(tmp_path).path.name == 'epoch_2.pth'


def test_weights_are_no_run(tmp_path):
    write_checkpoint(tmp_path / 'epoch_9.pth', dict(state_dict={}, meta=dict(iter=90)))
    run_file(tmp_path / 'epoch_1.pth', 10)
    found = find_newest(tmp_path)
    assert (found.path.name, len(found.skipped)) == ('epoch_1.pth', 1)
    assert 'holds weights, not a run' in found.skipped[0][1]


def test_nothing_to_go_on_from(tmp_path):
    assert choose_checkpoint(tmp_path, pytest.fail).path is None
    assert choose_checkpoint(tmp_path / 'missing', pytest.fail).path is None
    damage(run_file(tmp_path / 'epoch_1.pth', 10))
    with pytest.raises(
        ValueError, match=rf'no checkpoint in {tmp_path} can be resumed \(epoch_1.pth\).*start a new run'
    ):
        choose_checkpoint(tmp_path, lambda line: None)


def test_each_file_is_read_once(tmp_path, monkeypatch):
    for k in range(1, 5):
        run_file(tmp_path / f'epoch_{k}.pth', k)
    damage(tmp_path / 'epoch_4.pth')
    read, files = resume.read_checkpoint, []
    monkeypatch.setattr(resume, 'read_checkpoint', lambda path: files.append(path.name) or read(path))
    assert find_newest(tmp_path).content['meta']['iter'] == 3
    assert files == ['epoch_4.pth', 'epoch_3.pth']


def test_stale_temporary_files(tmp_path, monkeypatch):
    dead, own, young, old, other = (
        tmp_path / name
        for name in (
            '.epoch_1.pth.999999999.tmp',
            f'.epoch_1.pth.{os.getpid()}.tmp',
            f'.epoch_2.pth.{os.getppid()}.tmp',
            f'.epoch_3.pth.{os.getppid()}.tmp',
            '.notes.tmp',
        )
    )
    for path in (dead, own, young, old, other):
        path.write_bytes(b'x')
    os.utime(old, (0, 0))
    assert set(remove_stale(tmp_path)) == {dead, own, old}
    assert set(tmp_path.iterdir()) == {young, other}


# --- what must agree ---


def adam(*shapes: tuple, groups: int = 1) -> torch.optim.Optimizer:
    """An AdamW after one step on weights of these shapes."""
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = torch.optim.AdamW([dict(params=weights[k::groups]) for k in range(groups)])
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    return optimizer


def test_optimizer_state_of_the_same_model():
    ours = adam((2, 3), (3,), groups=2)
    check_optimizer(dict(optimizer=ours.state_dict()), 'a.pth', adam((2, 3), (3,), groups=2))
    check_optimizer(dict(optimizer=torch.optim.AdamW(ours.param_groups).state_dict()), 'a.pth', ours)


@pytest.mark.parametrize(
    'theirs, groups, fault',
    [
        ([(2, 3), (4,)], 2, r'exp_avg of parameter 1 is \(4,\) for \(3,\)'),
        ([(3, 2), (3,)], 2, r'exp_avg of parameter 0 is \(3, 2\) for \(2, 3\)'),
        ([(2, 3)], 1, '1 groups with 1 parameters for 2 with 2'),
        ([(2, 3), (3,)], 1, '1 groups with 2 parameters for 2 with 2'),
        ([(2, 3), (3,), (3,)], 2, '2 groups with 3 parameters for 2 with 2'),
    ],
)
def test_optimizer_state_of_another_model(theirs, groups, fault):
    content = dict(optimizer=adam(*theirs, groups=groups).state_dict())
    with pytest.raises(ValueError, match=rf'a.pth has the optimizer state of another model \({fault}\): resume with'):
        check_optimizer(content, 'a.pth', adam((2, 3), (3,), groups=2))


def test_optimizer_state_of_unknown_parameters():
    state = copy.deepcopy(adam((2,)).state_dict())
    state['state'][7] = state['state'][0]
    with pytest.raises(ValueError, match=r'states of unknown parameters \[7\]'):
        check_optimizer(dict(optimizer=state), 'a.pth', adam((2,)))


def test_optimizer_state_that_is_not_finite():
    state = copy.deepcopy(adam((2, 3), (3,)).state_dict())
    state['state'][1]['exp_avg_sq'][0] = float('inf')
    with pytest.raises(
        ValueError,
        match=r'a.pth has moments of the optimizer that are not finite \(infinite\), 1 of 6 tensors: exp_avg_sq of par',
    ):
        check_optimizer(dict(optimizer=state), 'a.pth', adam((2, 3), (3,)))


def test_facts_of_another_run():
    theirs, ours = dict(global_batch=8, loop='epochs', max_epochs=3), dict(global_batch=16, max_epochs=4, new=1)
    content = dict(meta=dict(bootmae=dict(run=theirs)))
    with pytest.raises(
        ValueError,
        match='a.pth is from a run with another config: global_batch 8, here 16; max_epochs '
        '3, here 4. .*--resume-changed',
    ):
        check_facts(content, 'a.pth', ours)
    assert check_facts(content, 'a.pth', ours, changed=True) == ['global_batch 8, here 16', 'max_epochs 3, here 4']
    for meta in ({}, dict(bootmae={}), dict(bootmae=dict(run=dict(ours, other=2)))):
        assert check_facts(dict(meta=meta), 'a.pth', ours) == []
