"""Block-wise masking (docs/method.md, section 3).

A mask is given as ``ids_shuffle``, a permutation of the N patches. The last M are masked, the others visible.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

MAX_DRAWS = 100_000  # per mask; the authors' grid needs about 30


class Random(Protocol):
    """The methods of ``numpy.random`` and ``numpy.random.RandomState`` that are used."""

    def random_sample(self, size: int) -> np.ndarray: ...

    def randint(self, low: int, high: int) -> int: ...


@dataclass(frozen=True)
class BlockMasking:
    """Draws block-wise masks for one patch grid.

    Args:
        grid: rows and columns of patches.
        num_masked: M, the number of masked patches. Default: three quarters of the grid.
        num_block: how many of them are masked in blocks; the others are random. 0 masks at random only. Default:
            120 / 196 of the grid.
        block_area: smallest and largest area of a block, in patches. Default: 16 / 196 and 60 / 196 of the grid.
        min_aspect: the aspect ratio of a block is log-uniform in [min_aspect, 1 / min_aspect].
        max_roll: the permutation is rolled by 0..max_roll places, so that a few masked patches become visible. The
            release draws one roll per batch, we draw one per image. The masks of an image have the same distribution
            and do not depend on how a batch is divided among processes.
    """

    grid: tuple[int, int]
    num_masked: int | None = None
    num_block: int | None = None
    block_area: tuple[float, float] | None = None
    min_aspect: float = 0.3
    max_roll: int = 3

    def __post_init__(self):
        n = self.grid[0] * self.grid[1]
        defaults = dict(
            num_masked=round(0.75 * n), num_block=round(120 * n / 196), block_area=(16 * n / 196, 60 * n / 196)
        )
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if min(self.grid) < 2:
            raise ValueError(f'block-wise masking needs a grid of at least 2 x 2 patches, not {self.grid}')
        if not (0 <= self.num_block <= self.num_masked < n and self.num_masked):
            raise ValueError(
                f'num_block={self.num_block} and num_masked={self.num_masked} do not fit {n} patches: '
                f'0 <= num_block <= num_masked, and num_masked from 1 to {n - 1}'
            )
        if not 0 < self.block_area[0] <= self.block_area[1] or not 0 < self.min_aspect <= 1:
            raise ValueError(
                f'block_area={self.block_area}, min_aspect={self.min_aspect}: areas must be positive '
                'and ascending, the aspect ratio in (0, 1]'
            )
        if not 0 <= self.max_roll <= n:
            raise ValueError(f'max_roll={self.max_roll} is outside 0..{n}')

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_visible(self) -> int:
        return self.num_patches - self.num_masked

    def draw_blocks(self, rng: Random) -> np.ndarray:
        """(rows, columns) booleans with exactly ``num_block`` patches masked in blocks."""
        (rows, columns), (min_area, max_area) = self.grid, self.block_area
        mask, left, log_aspect = 0, self.num_block, math.log(self.min_aspect)
        if not left:
            return np.zeros(self.grid, dtype=bool)
        for _ in range(MAX_DRAWS):
            limit = min(max_area, left)
            u_area, u_aspect, u_top, u_left = rng.random_sample(4).tolist()
            area = min_area + u_area * (limit - min_area)
            aspect = math.exp(log_aspect * (1 - 2 * u_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= rows or w >= columns:
                continue
            top, start = int(u_top * (rows - h + 1)), int(u_left * (columns - w + 1))
            both = mask | block_bits(h, w, columns) << top * columns + start
            new = both.bit_count() - self.num_block + left
            if 0 < new <= limit:
                mask, left = both, left - new
            if not left:
                return from_bits(mask, self.num_patches).reshape(self.grid)
        raise ValueError(f'no mask found in {MAX_DRAWS} draws for {self}: make the blocks smaller')

    def draw_ids_shuffle(self, rng: Random = np.random) -> np.ndarray:
        """(N,) int64: first the unmasked patches, then those in blocks, each in random order; then rolled."""
        mask = self.draw_blocks(rng).reshape(-1)
        order = np.argsort(mask - rng.random_sample(self.num_patches), kind='stable')
        kept = self.num_patches - rng.randint(0, self.max_roll + 1)
        return np.concatenate((order[kept:], order[:kept]))


@cache
def block_bits(height: int, width: int, columns: int) -> int:
    """The patches of a block in the upper left corner of a grid, row by row, as the bits of an integer."""
    return sum((1 << width) - 1 << row * columns for row in range(height))


def from_bits(bits: int, length: int) -> np.ndarray:
    """(length,) booleans, the lowest bit first."""
    packed = np.frombuffer(bits.to_bytes((length + 7) // 8, 'little'), dtype=np.uint8)
    return np.unpackbits(packed, count=length, bitorder='little').view(bool)
