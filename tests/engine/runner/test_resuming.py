"""Rank 0 finds the newest complete file for all ranks, and files of other runs are refused."""

import logging
import lzma
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from survivors import toy_runner, validated

from bootmae.checkpoints import read_checkpoint
from bootmae.checkpoints.write import write_checkpoint
from bootmae.config.batch import apply_batch
from bootmae.config.load import load_config
from bootmae.engine.hooks import checkpoint
from bootmae.engine.hooks.checkpoint import checkpoint_folder
from bootmae.engine.runner import runner as runner_module
from bootmae.engine.runner import state
from bootmae.engine.runner.build import build_runner
from bootmae.engine.runner.runner import await_file

ROOT = Path(__file__).resolve().parents[3]
RELEASES = ROOT / 'tests' / 'checkpoints'
CONFIG = ROOT / 'configs' / 'pretrain' / 'bootmae_debug.py'


@pytest.fixture
def warned(monkeypatch):
    messages = []
    monkeypatch.setattr(logging.Logger, 'warning', lambda self, message, *args: messages.append(str(message)))
    return messages


def edit(path: Path, change) -> None:
    """Change the content of a checkpoint and give it a valid checksum."""
    content = read_checkpoint(path)
    change(content)
    write_checkpoint(path, content)


@pytest.fixture
def half(tmp_path) -> Path:
    """The folder of a run after two of four epochs."""
    toy_runner(tmp_path, dict(max_keep_ckpts=-1), epochs=2).train()
    return tmp_path


# --- the newest file ---


def test_a_damaged_file_is_skipped_with_a_warning(half, warned):
    path = half / 'epoch_2.pth'
    path.write_bytes(path.read_bytes()[:-1000])
    assert (half / 'last_checkpoint').read_text() == str(path), 'the note that mmengine would follow'
    runner = toy_runner(half, epochs=4, resume=True)
    began = []

    class Look(Hook):
        def before_train(self, runner) -> None:
            began.append((runner.epoch, runner.iter))

    runner.register_hook(Look())
    runner.train()
    assert began == [(1, 4)]
    assert [
        bool(re.match(r'skipped epoch_2.pth: .*epoch_2.pth is damaged', line)) for line in warned if 'epoch_2' in line
    ] == [True]


def test_no_file_starts_anew_and_no_whole_one_ends(half, warned):
    runner = toy_runner(half / 'empty', epochs=1, resume=True)
    runner.train()
    assert runner.iter == 4
    for path in half.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=rf'no checkpoint in {half} can be resumed \(epoch_1.pth, epoch_2.pth\)'):
        toy_runner(half, epochs=4, resume=True).train()


def test_a_damaged_file_that_was_named_is_refused(half):
    path = half / 'epoch_2.pth'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r'epoch_2.pth is damaged \(checksum\)'):
        toy_runner(half, epochs=4, resume=True, load_from=str(path)).train()


def test_the_file_is_read_once(half, monkeypatch):
    loads, load = [], torch.load
    monkeypatch.setattr(torch, 'load', lambda path, **kwargs: loads.append(Path(path).name) or load(path, **kwargs))
    toy_runner(half, epochs=2, resume=True).train()
    assert loads == ['epoch_2.pth']


def test_other_ranks_follow_rank_0(half, monkeypatch):
    """Rank 1 has an old view of the folder without files and waits for the file that rank 0 names."""
    hidden = half / 'hidden'
    hidden.mkdir()
    shutil.move(half / 'epoch_2.pth', hidden)
    monkeypatch.setattr(runner_module, 'is_main_process', lambda: False)
    monkeypatch.setattr(runner_module, 'choose_checkpoint', lambda *args: pytest.fail('rank 1 looks for itself'))
    monkeypatch.setattr(runner_module, 'remove_stale', lambda *args: pytest.fail('rank 1 deletes'))

    def heard(answer):
        answer[0] = str(half / 'epoch_2.pth')
        threading.Timer(0.3, shutil.move, (hidden / 'epoch_2.pth', half)).start()

    monkeypatch.setattr(runner_module, 'broadcast_object_list', heard)
    runner = toy_runner(half, epochs=2, resume=True)
    runner.train()
    assert runner.iter == 8
    monkeypatch.setattr(runner_module, 'broadcast_object_list', lambda answer: answer.__setitem__(1, 'none is whole'))
    with pytest.raises(ValueError, match='none is whole'):
        toy_runner(half, epochs=2, resume=True).train()


def test_waiting_for_a_file_ends(tmp_path):
    await_file(str(tmp_path / 'never.pth'), seconds=0.01)


def test_a_folder_of_its_own(tmp_path):
    """Files are written to ``out_dir`` and found there."""
    out, work = tmp_path / 'other' / 'work', tmp_path / 'work'
    toy_runner(work, dict(out_dir=str(out)), epochs=1).train()
    assert [path.name for path in (out / 'work').glob('*.pth')] == ['epoch_1.pth']
    runner = toy_runner(work, dict(out_dir=str(out)), epochs=2, resume=True)
    assert checkpoint_folder(runner) == out / 'work'
    runner.train()
    assert [path.name for path in (out / 'work').glob('*.pth')] == ['epoch_2.pth']
    assert checkpoint_folder(runner) == out / 'work'


# --- refusals ---


def test_the_optimizer_state_of_another_model_is_refused(half):
    def spoil(content):
        content['optimizer']['state'][0]['exp_avg'] = torch.zeros(4, 2)

    edit(half / 'epoch_2.pth', spoil)
    with pytest.raises(
        ValueError,
        match=r'epoch_2.pth has the optimizer state of another model \(exp_avg of parameter '
        r'0 is \(4, 2\) for \(3, 2\)\)',
    ):
        toy_runner(half, epochs=4, resume=True).train()


def test_a_run_with_another_config_is_refused_unless_wanted(half, warned):
    facts = dict(loop='epochs', global_batch=2, train_samples=8, optimizer='AdamW', max_epochs=2)
    edit(half / 'epoch_2.pth', lambda content: content['meta'].update(bootmae=dict(run=facts)))
    toy_runner(half, dict(interval=10, save_last=False), epochs=2, resume=True).train()
    changes = {'train_dataloader.batch_size': 4, 'optim_wrapper.optimizer.type': 'Adam'}
    with pytest.raises(ValueError, match="batch 2, here 4; optimizer 'AdamW', here 'Adam'; max_epochs 2, here 3"):
        toy_runner(half, epochs=3, resume=True, **changes).train()
    toy_runner(half, epochs=3, resume=True, resume_changed=True).train()
    assert [line for line in warned if 'resumed' in line] == [
        'resumed with another config (--resume-changed): max_epochs 2, here 3'
    ]


def test_resume_signature(tmp_path):
    runner = toy_runner(tmp_path, epochs=2, **{'optim_wrapper.accumulative_counts': 2})
    runner.train()
    assert state.resume_signature(runner) == dict(
        loop='epochs', global_batch=4, train_samples=8, optimizer='AdamW', max_epochs=2, lr=0.1, weight_decay=0.01
    )
    runner = toy_runner(
        tmp_path,
        dict(by_epoch=False, interval=4),
        **{'optim_wrapper.accumulative_counts': 2},
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=6),
    )
    runner.train()
    assert state.resume_signature(runner) == dict(
        loop='iterations', global_batch=4, train_samples=8, optimizer='AdamW', max_steps=3, lr=0.1, weight_decay=0.01
    )


# --- files of released versions ---


@pytest.mark.parametrize('release', sorted(path.name for path in RELEASES.glob('release_*.pth.xz')))
def test_files_of_released_versions_load_and_resume(tmp_path, release):
    """The files hold one of two epochs of two steps."""
    (tmp_path / 'epoch_1.pth').write_bytes(lzma.decompress((RELEASES / release).read_bytes()))
    tiny = dict(embed_dims=8, depth=1, num_heads=1)
    cfg = load_config(
        CONFIG,
        {
            'model.backbone.arch': tiny,
            'model.pixel_decoder': tiny,
            'train_dataloader.dataset.labels_per_class': None,
            'train_dataloader.dataset.indices': 8,
            'train_dataloader.batch_size': 4,
            'log_level': 'ERROR',
            'auto_scale_lr.base_batch_size': 4,
            'experiment_name': 'release',
            'resume': True,
            'default_hooks.checkpoint.type': 'SafeCheckpointHook',
        },
    )
    apply_batch(cfg, 1)
    before = read_checkpoint(tmp_path / 'epoch_1.pth')
    runner = build_runner(cfg, CONFIG, str(tmp_path))
    runner.train()
    after = read_checkpoint(tmp_path / 'epoch_2.pth')
    assert (runner.epoch, runner.iter) == (2, 4)
    assert [state['step'].item() for state in after['optimizer']['state'].values()] == [4.0] * len(
        before['optimizer']['state']
    )
    schedule = after['param_schedulers'][0]
    assert (schedule['_global_step'], schedule['_last_value'][0]) == (4, pytest.approx(1.5498214e-4))
    assert not torch.equal(after['state_dict']['momentum.cls_token'], before['state_dict']['momentum.cls_token'])


# --- the size of files ---


def hub_of(values: int) -> MessageHub:
    hub = MessageHub(f'hub_{values}')
    for value in range(values):
        hub.update_scalar('train/loss', float(value))
    return hub


def test_histories_keep_their_end():
    hub = hub_of(1000)
    state.cap_histories(hub, 256)
    history = hub.get_scalar('train/loss')
    assert history.data[0].tolist() == list(range(744, 1000))
    assert history.data[1].tolist() == [1] * 256
    hub.update_scalar('train/loss', 7.0)
    assert history.data[0].tolist() == [*range(745, 1000), 7]
    assert history.mean(10) == HistoryBuffer([*range(1000), 7], [1] * 1001).mean(10)


def test_windows_of_the_log_stay_whole(tmp_path):
    def length(*windows) -> int:
        runner = toy_runner(
            tmp_path,
            epochs=1,
            **validated([1.0]),
            log_processor=dict(
                custom_cfg=[
                    dict(data_src='loss', log_name=f'loss_{size}', method_name='mean', window_size=size)
                    for size in windows
                ]
            ),
        )
        return state.history_length(runner)

    assert (length(), length(10), length(1000), length('epoch'), length('global')) == (256, 256, 1000, 256, 1_000_000)


def test_files_do_not_grow(tmp_path, monkeypatch):
    """Histories in memory do not grow either: 40 epochs of four iterations, with room for 30 values."""
    monkeypatch.setattr(state, 'HISTORY', 30)
    monkeypatch.setattr(checkpoint, 'CAP_INTERVAL', 10)
    runner = toy_runner(tmp_path, dict(interval=20, max_keep_ckpts=-1, minutes=0), epochs=40)
    runner.train()
    first, last = (tmp_path / f'epoch_{epoch}.pth' for epoch in (20, 40))
    assert abs(last.stat().st_size - first.stat().st_size) <= 64
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 30
    assert len(read_checkpoint(last)['message_hub']['log_scalars']['train/loss'].data[0]) == 30
