"""Images of several channels in all formats that hold them."""

import io

import cv2
import numpy as np
import tifffile


def pixels(
    channels: int = 5, dtype: str = 'uint16', high: float = 4095, size: tuple[int, int] = (30, 40)
) -> np.ndarray:
    """Smooth values (H, W, C), different in every channel, that reach 0 and ``high``."""
    rng = np.random.default_rng(channels)
    coarse = rng.random((5, 6, channels))
    image = np.dstack([cv2.resize(coarse[..., c], size[::-1], interpolation=cv2.INTER_CUBIC) for c in range(channels)])
    image = (image - image.min()) / (image.max() - image.min()) * high
    return (image.round() if np.dtype(dtype).kind in 'ui' else image).astype(dtype)


def tiff(image: np.ndarray, **options) -> bytes:
    """Encode (H, W, C) with the channels of each pixel side by side, or with ``separate`` planes (C, H, W)."""
    buffer, planes = io.BytesIO(), options.pop('separate', False)
    array = image.transpose(2, 0, 1) if planes else image
    layout = {} if planes else dict(planarconfig='contig')
    tifffile.imwrite(buffer, array, photometric='minisblack', **layout, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    """Encode gray (H, W, 1), RGB or RGBA."""
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
    return cv2.imencode('.png', image[..., order])[1].tobytes()
