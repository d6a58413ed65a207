"""Malicious checkpoints given to every command that reads one: nothing in them is executed."""

import itertools
import re
import sys
from pathlib import Path

import pytest
from calling import call_tool

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / 'tests' / 'checkpoints'))

from payloads import PAYLOADS  # noqa: E402

PRETRAIN = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'
FINETUNE = REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
COUNT = itertools.count()
LIGHT = [
    'log_level=ERROR',
    'train_dataloader.dataset.labels_per_class=1',
    'train_dataloader.batch_size=2',
    'auto_scale_lr.base_batch_size=2',
    'model.backbone.arch.embed_dims=12',
]

# name: (tool, its arguments, whether it takes --cfg-options and --work-dir)
COMMANDS = {
    'train --init': ('train', [FINETUNE, '--init', 'evil.pth'], True),
    'train --resume': ('train', [PRETRAIN, '--resume', 'evil.pth'], True),
    'test': ('test', [FINETUNE, 'evil.pth'], True),
    'knn': ('knn', [FINETUNE, '--init', 'evil.pth'], False),
    'convert_checkpoint': ('convert_checkpoint', ['evil.pth', '--to', 'timm', 'out.pth'], False),
    'convert_checkpoint, name': ('convert_checkpoint', ['evil.bin', '--to', 'safetensors', 'a.safetensors'], False),
}


BUILD_FIRST = ('train --resume', 'test')
TEN = (
    'os.system',
    'setstate',
    'numpy objects',
    'subprocess.Popen',
    'eval',
    'exec',
    '__import__ and getattr',
    'pickle in a pickle',
    'torch file in a pickle',
    'functools.partial',
)
FEW = TEN[:3]  # in the fast tests


def call(tool: str, args: list, options: bool) -> int:
    if options:
        args = [*args, '--work-dir', 'work', '--cfg-options', f'experiment_name=evil_{next(COUNT)}', *LIGHT]
    return call_tool(tool, *args)


# Ten kinds for every command, all for the quick ones; those that build a whole runner first take a second each.
SLOW = [pytest.mark.slow]
CASES = [
    pytest.param(payload, command, marks=SLOW if command in BUILD_FIRST and payload not in FEW else [])
    for command in COMMANDS
    for payload in (TEN if command in BUILD_FIRST else PAYLOADS)
]


@pytest.mark.parametrize('payload, command', CASES)
def test_nothing_is_executed(tmp_path, monkeypatch, capsys, payload, command):
    monkeypatch.chdir(tmp_path)
    tool, args, options = COMMANDS[command]
    name = next(arg for arg in args if str(arg).startswith('evil'))
    PAYLOADS[payload](Path(name), tmp_path / 'marker')
    assert call(tool, args, options) == 2
    assert not Path('marker').exists()
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf'error: .*{name} holds more than tensors and plain types, .* was not read \(', line), line
    assert not {'out.pth', 'a.safetensors'} & {path.name for path in tmp_path.iterdir()}
