"""Equality with the authors' release of the code that torch.compile generates for a GPU."""

import pytest
import torch
from rehearsal import compile_option, toy
from torch._dynamo.utils import counters

from bootmae.commands.parity import TOLERANCE, compare

SECONDS = 120  # most of it is compilation
CASES = [
    ('whole', 'square'),
    ('blocks', 'square'),
    ('blocks', 'segmentation'),
    ('blocks', 'finetune'),
    ('whole', 'odd_heads'),
    ('blocks', 'odd_heads'),
    ('whole', 'plain_loss'),
    ('blocks', 'plain_loss'),
]
CASES = CASES[: toy(len(CASES), 4)]


@pytest.mark.parametrize('scope, name', CASES)
def test_the_release_in_float64(device, golden, scope, name):
    """All that the eager comparison looks at. Only pretraining can be compiled as a whole."""
    torch._dynamo.reset()
    counters.clear()
    _, errors = compare(golden / f'compact_{name}.npz', compile_option(scope, backward=True), device)
    print(scope, name, {what: f'{error:.1e}' for what, error in errors.items()})
    assert {what: error for what, error in errors.items() if not error <= TOLERANCE} == {}
    assert counters['stats']['unique_graphs'] > 0
