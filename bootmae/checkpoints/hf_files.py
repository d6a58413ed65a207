"""``config.json`` and ``preprocessor_config.json``, which make a folder of ``from_pretrained`` of exported weights."""

from typing import Any

from .heads import recorded_heads
from .identify import FileEncoder
from .targets import EPS, Sizes

WEIGHTS, CONFIG, PREPROCESSOR = 'model.safetensors', 'config.json', 'preprocessor_config.json'
BICUBIC = 3  # of Pillow


def hf_files(encoder: FileEncoder) -> dict[str, dict[str, Any]]:
    """Content of the files by name. What the encoder's file does not record is missing: its heads, its statistics."""
    found = {CONFIG: model_config(encoder), PREPROCESSOR: preprocessor_config(encoder)}
    return {name: content for name, content in found.items() if content}


def model_config(encoder: FileEncoder) -> dict[str, Any] | None:
    """Settings of transformers' ``ViTConfig``; None if the number of heads is unknown."""
    sizes, heads = Sizes(encoder, 'hf'), recorded_heads(encoder)
    if heads is None:
        return None
    return dict(
        architectures=['ViTModel'],
        model_type='vit',
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=heads,
        intermediate_size=sizes.hidden,
        hidden_act='gelu',
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=EPS,
        qkv_bias=True,
        image_size=_side(sizes.size),
        patch_size=_side(sizes.patch),
        num_channels=sizes.channels,
    )


def preprocessor_config(encoder: FileEncoder) -> dict[str, Any] | None:
    """Settings of transformers' ``ViTImageProcessor``; None if the input statistics are unknown."""
    if encoder.mean is None or encoder.std is None:
        return None
    height, width = Sizes(encoder, 'hf').size
    return dict(
        image_processor_type='ViTImageProcessor',
        do_resize=True,
        size=dict(height=height, width=width),
        resample=BICUBIC,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[value / 255 for value in encoder.mean],
        image_std=[value / 255 for value in encoder.std],
    )


def _side(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
