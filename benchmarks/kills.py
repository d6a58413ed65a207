#!/usr/bin/env python3
"""Kill training runs at random points and check that they resume bit for bit.

    benchmarks/kills.py --kills 20 --ranks 1 2       # 20 during training and 20 during saving, on 1 and on 2 processes

A toy BootMAE is trained without interruption, then with a kill -9 and `--resume`. Every step must have the losses,
learning rate, EMA decay, images and masks of the uninterrupted run bit for bit, and so must the final weights and
moments. No more work may be lost than between two saves. Prints a line for each kill; the exit code is 1 if anything
differs. Needs only a CPU. `--stock` shows that mmengine's own loops and checkpoints fail.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import HOOKS  # noqa: E402

from bootmae.checkpoints.load import tensors_hash  # noqa: E402
from bootmae.checkpoints.resume import find_newest  # noqa: E402
from bootmae.commands.train import train  # noqa: E402
from bootmae.config import steps  # noqa: E402

CONFIG = ROOT / 'configs' / 'pretrain' / 'bootmae_debug.py'
INTERVAL = 2  # optimizer steps between two saves
STEPS = 15  # 3 epochs of 160 digits in batches of 32
SETTINGS = {  # accumulation, workers, precision
    'plain': (1, 0, 'GuardedOptimWrapper'),
    '2 workers': (1, 2, 'GuardedOptimWrapper'),
    'accumulation 2, bf16': (2, 0, 'AutocastOptimWrapper'),
}
CRASHED = -signal.SIGKILL


@HOOKS.register_module(force=True)
class StepRecorder(Hook):
    """Appends a line for each iteration to ``record_RANK.jsonl`` in the work directory."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        digest = hashlib.sha256(torch.stack(list(data_batch['inputs'])).numpy().tobytes())
        for sample in data_batch['data_samples']:
            digest.update(torch.as_tensor(sample.ids_shuffle).numpy().tobytes())
        line = dict(
            iter=runner.iter,
            lr=runner.optim_wrapper.get_lr()['lr'],
            batch=digest.hexdigest(),
            ema=runner.message_hub.get_scalar('train/ema_decay').current(),
            mean_loss=runner.message_hub.get_scalar('train/loss').current(),  # mean over all ranks, as logged
            **{name: float(value.detach()) for name, value in outputs.items()},
        )
        with open(f'{runner.work_dir}/record_{runner.rank}.jsonl', 'a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')


@dataclass
class Case:
    """A run with a number of processes and one of ``SETTINGS``."""

    ranks: int
    setting: str
    drop_path: float = 0.2  # random numbers in each step that differ between ranks

    @property
    def iterations(self) -> int:
        return STEPS * SETTINGS[self.setting][0]

    def options(self) -> dict:
        accumulation, workers, wrapper = SETTINGS[self.setting]
        return {
            'train_dataloader.batch_size': 32 // (self.ranks * accumulation),
            'train_dataloader.num_workers': workers,
            'optim_wrapper.type': wrapper,
            'model.backbone.drop_path_rate': self.drop_path,
            'train_cfg.max_epochs': 3,
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': INTERVAL,
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            'default_hooks.recorder.type': 'StepRecorder',
            'log_level': 'ERROR',
            'visualizer.vis_backends': [],
        }


def count_file_events(work_dir: Path, act: Callable[[int], None]) -> None:
    """Call ``act(n)`` at the n-th opening, renaming or removal of a checkpoint in this process."""
    seen = 0

    def watch(event: str, args: tuple) -> None:
        nonlocal seen
        if event in ('open', 'os.rename', 'os.remove') and any(
            isinstance(arg, (str, Path))
            and str(arg).startswith(str(work_dir))
            and ('.pth' in str(arg) or 'last_checkpoint' in str(arg))
            for arg in args[:2]
        ):
            seen += 1
            act(seen)

    sys.addaudithook(watch)


def start(case: Case, work_dir: Path, kill_at_event: int = 0) -> list[int]:
    """Fork the processes of a run, which resumes from its work directory; return their ids."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    sys.stdout.flush()
    pids = []
    for rank in range(case.ranks):
        pid = os.fork()
        if not pid:
            _train(case, work_dir, rank, port, kill_at_event)
        pids.append(pid)
    return pids


def _train(case: Case, work_dir: Path, rank: int, port: int, kill_at_event: int) -> None:
    """Train in a forked process. Does not return."""
    log = os.open(work_dir / f'log_{rank}.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    try:
        torch.set_num_threads(1)
        os.environ |= dict(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(case.ranks),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
        if rank == 0:
            events = work_dir / 'file_events.txt'
            count_file_events(
                work_dir,
                lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == kill_at_event else events.write_text(str(n)),
            )
        train(
            str(CONFIG), str(work_dir), case.options(), resume='auto', launcher='pytorch' if case.ranks > 1 else 'none'
        )
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def finish(pids: list[int]) -> bool:
    """Wait for the processes and return whether all succeeded. When one dies, kill the others, as torchrun does."""
    left, well = set(pids), True
    while left:
        pid, status = os.wait()
        left.discard(pid)
        if status and left:
            for other in left:
                os.kill(other, signal.SIGKILL)
        well &= not status
    return well


def records(work_dir: Path, rank: int) -> list[dict]:
    """Return the lines of a rank from all attempts, without a line cut off by a kill."""
    path = work_dir / f'record_{rank}.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def kill_when(work_dir: Path, pids: list[int], line: int, delay: float) -> None:
    """Send SIGKILL to all processes ``delay`` seconds after rank 0 has recorded ``line`` iterations, or at its end."""
    look = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while len(records(work_dir, 0)) < line and os.waitid(os.P_PID, pids[0], look) is None:
        time.sleep(0.002)
    time.sleep(delay)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def outcome(work_dir: Path) -> tuple[str, str]:
    """Return the hashes of the final weights and of the optimizer's moments."""
    content = find_newest(work_dir).content
    moments = {
        f'{key}.{name}': value for key, state in content['optimizer']['state'].items() for name, value in state.items()
    }
    return tensors_hash(content['state_dict']), tensors_hash(moments)


class Trial:
    """Runs a case without interruption and compares killed runs with it."""

    def __init__(self, case: Case, folder: Path):
        self.case, self.folder = case, folder
        work_dir = self.fresh()
        if not finish(start(case, work_dir)):
            raise RuntimeError(f'the uninterrupted run failed:\n{(work_dir / "log_0.txt").read_text()[-3000:]}')
        self.expected = [{line['iter']: line for line in records(work_dir, rank)} for rank in range(case.ranks)]
        if len(self.expected[0]) != case.iterations:
            raise RuntimeError(f'the uninterrupted run has {len(self.expected[0])} iterations, not {case.iterations}')
        self.outcome = outcome(work_dir)
        self.file_events = int((work_dir / 'file_events.txt').read_text())
        self.number = 0

    def fresh(self) -> Path:
        """Return an empty work directory."""
        work_dir = self.folder / 'run'
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir(parents=True)
        return work_dir

    def kill(self, during: str, rng: random.Random) -> tuple[str, list[str]]:
        """Kill a run once and resume it.

        Returns:
            Where it was killed, and its differences from the uninterrupted run.
        """
        work_dir = self.fresh()
        if during == 'saving':
            event = rng.randint(1, self.file_events)
            where = f'file event {event} of {self.file_events}'
            finish(start(self.case, work_dir, event))
        else:
            line, delay = rng.randint(1, self.case.iterations - 1), rng.uniform(0, 0.04)
            where = f'iteration {line} of {self.case.iterations} + {1000 * delay:.0f} ms'
            pids = start(self.case, work_dir)
            kill_when(work_dir, pids, line, delay)
            finish(pids)
        done = len(records(work_dir, 0))
        if not finish(start(self.case, work_dir)):
            return where, [f'not resumed: {(work_dir / "log_0.txt").read_text()[-1500:]}']
        again = records(work_dir, 0)[done:]
        lost = done - again[0]['iter'] if again else 0
        too_much = lost > INTERVAL * SETTINGS[self.case.setting][0]
        return where, [f'{lost} iterations of {done} lost'] * too_much + self.differences(work_dir)

    def differences(self, work_dir: Path) -> list[str]:
        """Describe the differences of a run from the uninterrupted one."""
        found = []
        for rank, expected in enumerate(self.expected):
            lines = records(work_dir, rank)
            for line in lines:
                right = expected.get(line['iter'], {})
                found += [
                    f'rank {rank}, iteration {line["iter"]}: {key} {value} instead of {right.get(key)}'
                    for key, value in line.items()
                    if right.get(key) != value
                ]
            missing = set(expected) - {line['iter'] for line in lines}
            found += [f'rank {rank}: iterations {sorted(missing)} never ran'] if missing else []
        if outcome(work_dir) != self.outcome:
            found.append('final weights or moments differ')
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='number of kills during training, and during saving')
    parser.add_argument('--ranks', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--settings', nargs='+', choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--stock', action='store_true', help="use mmengine's loops, loader and checkpoints")
    args = parser.parse_args()
    if args.stock:
        steps.apply_run_defaults = lambda cfg: None
    torch.set_num_threads(1)
    rng, failed, done = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        cases = [Case(ranks, setting) for ranks in args.ranks for setting in args.settings]
        trials = [Trial(case, Path(folder, str(k))) for k, case in enumerate(cases)]
        for number in range(args.kills):
            for during in ('training', 'saving'):
                trial = trials[number % len(trials)]
                where, found = trial.kill(during, rng)
                done += 1
                failed += bool(found)
                print(
                    f'{done:3d} {trial.case.ranks} process(es), {trial.case.setting}, killed during {during} '
                    f'({where}): {"; ".join(found[:3]) or "same"}',
                    flush=True,
                )
    print(f'{done} kills: {done - failed} resumed bit for bit, {failed} not')
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
