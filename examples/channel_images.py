#!/usr/bin/env python3
"""Write a small data set of 5 channels from photographs that installed packages carry; see docs/channels.md.

  examples/channel_images.py data/channels

tiff/{train,val}/CLASS     uint16 TIFF of 12 bits, (H, W, 5): red, green and blue in linear light, and two bands
                           computed from them, local contrast and coarse brightness
npy/{train,val}/CLASS      the same as float32 NumPy files, (5, H, W), of 0 to 1
scenes, scenes_npy         two photographs side by side, as both kinds of files, with the class of each pixel
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import tifffile

from bootmae.data.embedded import PHOTOS, PhotoCrops

CLASSES = ('brick', 'chelsea', 'coffee', 'flower', 'grass', 'immunohistochemistry')
BITS = 12
SIZE = 80  # pixels
SPLITS = {'train': 'training', 'val': 'validation'}  # folders of class folders, and of scenes


def bands(image: np.ndarray) -> np.ndarray:
    """Return five bands of 0 to 1, float32 (H, W, 5), of an RGB image, uint8 (H, W, 3)."""
    level = image.astype(np.float32) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)  # sRGB
    light = linear.mean(axis=2)
    coarse = cv2.GaussianBlur(light, (0, 0), 4)
    contrast = np.sqrt(cv2.GaussianBlur((light - coarse) ** 2, (0, 0), 2))
    return np.dstack([linear, contrast.clip(0, 0.5) * 2, coarse]).astype(np.float32)


def twelve_bits(values: np.ndarray) -> np.ndarray:
    return (values * (2**BITS - 1)).round().astype(np.uint16)


def write_tiff(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, twelve_bits(values), photometric='minisblack', planarconfig='contig')


def write_array(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values.transpose(2, 0, 1))


def write_folders(root: Path, split: str, count: int) -> None:
    """Write ``count`` crops of each class, as TIFF and as NumPy files."""
    data = PhotoCrops(split, size=SIZE, crops_per_image=count, pipeline=[])
    for name in CLASSES:
        first = list(PHOTOS).index(name) * count
        for number, image in enumerate(data.images(range(first, first + count))):
            values = bands(image)
            write_tiff(root / 'tiff' / split / name / f'{number:03}.tif', values)
            write_array(root / 'npy' / split / name / f'{number:03}.npy', values)


def write_scenes(root: Path, split: str, count: int) -> None:
    """Write ``count`` scenes of 96 x 144 pixels, each of two classes that meet at a random column."""
    rng, (height, width) = np.random.default_rng(len(split)), (96, 144)
    data = PhotoCrops(split, size=width, crops_per_image=count, pipeline=[])
    for number in range(count):
        left, right = rng.choice(len(CLASSES), 2, replace=False)
        column = int(rng.integers(width // 4, 3 * width // 4))
        rows = [list(PHOTOS).index(CLASSES[label]) * count + number for label in (left, right)]
        images = data.images(rows)[:, :height]
        inside = np.arange(width) < column
        scene = np.where(inside[None, :, None], images[0], images[1])
        mask = np.broadcast_to(np.where(inside, left, right).astype(np.uint8), (height, width))
        for folder, ending, write_image in (('scenes', 'tif', write_tiff), ('scenes_npy', 'npy', write_array)):
            write_image(root / folder / 'images' / SPLITS[split] / f'{number:03}.{ending}', bands(scene))
            path = root / folder / 'annotations' / SPLITS[split] / f'{number:03}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), mask)


def write(root: Path, train: int = 60, val: int = 20) -> None:
    """Write the whole data set, with ``train`` and ``val`` images of each class, and as many scenes."""
    for split, count in (('train', train), ('val', val)):
        write_folders(root, split, count)
        write_scenes(root, split, count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder to create')
    parser.add_argument('--train', type=int, default=60, help='training images of each class (default: 60)')
    parser.add_argument('--val', type=int, default=20, help='validation images of each class (default: 20)')
    args = parser.parse_args()
    write(args.folder, args.train, args.val)
    print(f'{args.folder}: tiff and npy with {args.train} + {args.val} images of each class, and as many scenes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
