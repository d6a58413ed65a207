"""benchmarks/gpu_memory.py: what autograd keeps, on tensors without content."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import gpu_memory  # noqa: E402


def test_what_is_kept_is_counted_once():
    with FakeTensorMode():
        with torch.device('cuda'):
            model = nn.Linear(10, 20)
        x = torch.empty(4, 10, device='cuda', requires_grad=True)
        with gpu_memory.counted(model) as kept:
            y = model(x)
            (y * y).sum()
    # x and the weight in bf16, and the output, which the product keeps twice
    assert sorted(storage.nbytes() for storage in kept.values()) == [4 * 10 * 2, 4 * 20 * 2, 10 * 20 * 2]


def test_the_step_of_a_prototype_that_an_h100_measured():
    """13.1 GiB at batch 256 and 22.8 at 512 (compiled), BootMAE ViT-B in bf16."""
    row = gpu_memory.estimate('configs/pretrain/bootmae_vitb.py')
    assert row['gib_fixed'] + 256 * row['mib_per_image'] / 1024 == pytest.approx(13.1, rel=0.04)
    assert row['gib'] == pytest.approx(22.8, rel=0.04)
    assert row['batch'] == 512


def test_checkpointing_keeps_less_and_the_cards_hold_more():
    plain, saved = (gpu_memory.estimate('configs/pretrain/bootmae_vitb.py', value) for value in (False, True))
    assert saved['mib_per_image'] < plain['mib_per_image'] / 4
    for row in (plain, saved):
        bytes_each, fixed = row['mib_per_image'] * 2**20, row['gib_fixed'] * 2**30
        assert fixed + row['images_40_gb'] * bytes_each <= 36e9 < fixed + (row['images_40_gb'] + 1) * bytes_each
