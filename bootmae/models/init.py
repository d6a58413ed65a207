"""Weight initialization, as in the authors' release."""

import math

from torch import nn

from .layers import CrossAttention, SelfAttention


def init_transformer_weights(model: nn.Module) -> None:
    """Initialize matrices Xavier-uniform, biases with zero and LayerNorms with one, in place.

    Query, key and value are initialized as three matrices, and the patch embedding as one. Transposed convolutions keep
    torch's initialization.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            rows, columns = module.qkv.weight.shape
            bound = math.sqrt(6 / (rows // 3 + columns))
            nn.init.uniform_(module.qkv.weight, -bound, bound)
        if isinstance(module, (SelfAttention, CrossAttention)):
            nn.init.zeros_(module.q_bias)
            nn.init.zeros_(module.v_bias)
