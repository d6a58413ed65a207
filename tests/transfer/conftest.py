import pytest
from mmengine.registry import init_default_scope


@pytest.fixture
def scope():
    """``scope(library)``: set the default scope of the registries."""
    yield init_default_scope
    init_default_scope('mmpretrain')


@pytest.fixture
def make(make_vit):
    """``make(**changes)``: a toy TransferViT in float64, eval mode, all weights random."""

    def make_transfer(**changes):
        return make_vit(type='TransferViT', **changes)

    return make_transfer
