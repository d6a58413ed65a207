"""The figure of README.md: what BootMAE computes from one image (docs/method.md).

Plain SVG, drawn from coordinates. There are two layouts (wide, and tall for narrow screens) in two themes each.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bootmae.models.masking import BlockMasking

FOLDER = Path('docs', 'images')
SIDE = 14  # patches a side, of 224 pixels in patches of 16
BLOCKS = 12  # of ViT-B
MASK_SEED = 75
FONT = "-apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
SCENE = (  # shapes of the image in units of patches, with their colors
    ('M0 0h14v14h-14z', '#9fd3f0'),
    ('M8.2 3.4a2 2 0 1 0 4 0a2 2 0 1 0 -4 0z', '#ffd75e'),
    ('M0 8.5L4.4 3L7.2 6.4L9.4 4.6L14 9.5V10H0z', '#7d93b5'),
    ('M4.4 3L3 4.75L4.2 4.3L4.9 5.2L5.7 4.6z', '#ffffff'),
    ('M0 8.2Q4 7 8 8.8T14 8.6V11.5H0z', '#5f9e5a'),
    ('M0 10.4Q6 9.6 14 10.8V14H0z', '#3f78a8'),
    ('M2.6 9.9h0.5v-1.2h1.1l-1.35 -3l-1.35 3h1.1z', '#2f6b3a'),
    ('M10.8 10h0.5v-1.4h1.2l-1.45 -3.3l-1.45 3.3h1.2z', '#2f6b3a'),
)
REGIONS = (('#b48ce0', 4), ('#e0708a', 8), ('#58b4a0', 10), ('#4c7fd6', SIDE))  # color of features above a row
THEMES = {
    'light': dict(
        text='#1f2328', muted='#59636e', line='#59636e', box='#f6f8fa', edge='#d1d9e0', hidden='#d1d9e0',
        pixels='#9a6700', features='#0969da', momentum='#8250df',
    ),
    'dark': dict(
        text='#f0f6fc', muted='#9198a1', line='#9198a1', box='#151b23', edge='#3d444d', hidden='#3d444d',
        pixels='#d29922', features='#4493f8', momentum='#ab7df8',
    ),
}  # fmt: skip
DESCRIPTION = (
    'BootMAE: the online encoder sees the visible quarter of the patches. The pixel decoder attends to features of its '
    'first block and predicts the normalized pixels of the masked patches. The feature decoder attends to features of '
    'its last block and predicts the features that the momentum encoder, a moving average of the online encoder, '
    'computes from the whole image.'
)

Point = tuple[float, float]


def masked_patches() -> np.ndarray:
    """(14, 14) booleans: a mask of the training."""
    masking = BlockMasking((SIDE, SIDE))
    masked = np.zeros(SIDE * SIDE, dtype=bool)
    masked[masking.draw_ids_shuffle(np.random.RandomState(MASK_SEED))[masking.num_visible :]] = True
    return masked.reshape(SIDE, SIDE)


def patches(which: np.ndarray, color: str) -> str:
    """Filled patches, in units of patches; a run of neighbors in a row is one rectangle."""
    steps = []
    for row, line in enumerate(np.pad(which, ((0, 0), (1, 1))).astype(int)):
        edges = np.flatnonzero(np.diff(line))
        steps += [f'M{start} {row}h{end - start}v1h{start - end}z' for start, end in edges.reshape(-1, 2).tolist()]
    return f'<path fill="{color}" d="{"".join(steps)}"/>'


def regions(which: np.ndarray) -> str:
    """Features of some patches as colors: patches of one part of the scene are alike."""
    rows, columns = np.indices(which.shape)
    below = rows + (columns % 5 == 2) + (columns > 9)  # uneven borders
    parts, top = [], -1
    for color, bottom in REGIONS:
        parts.append(patches(which & (below > top) & ((below <= bottom) | (bottom == SIDE)), color))
        top = bottom
    return ''.join(parts)


class Drawing:
    """Collects the elements of one figure.

    Args:
        width: of the coordinate system.
        height: of the coordinate system.
        theme: colors by role.
    """

    def __init__(self, width: int, height: int, theme: dict[str, str]):
        self.size, self.theme = (width, height), theme
        self.parts: list[str] = []
        self.mask = masked_patches()

    def text(self, x: float, y: float, text: str, role: str = 'text', anchor: str = 'middle', bold: bool = False):
        weight = ' font-weight="600"' if bold else ''
        self.parts.append(
            f'<text x="{x}" y="{y}" fill="{self.theme[role]}" text-anchor="{anchor}"{weight}>{text}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, lines: Sequence[str], role: str, top: float = 0):
        """A box with centered lines of text; ``top`` is the first baseline, by default that of centered lines."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{self.theme["box"]}" '
            f'stroke="{self.theme[role]}" stroke-width="1.5"/>'
        )
        first = y + (top or height / 2 + 5 - 9 * (len(lines) - 1))
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + 18 * number, line, bold=True)

    def encoder(self, x: float, y: float, width: float, name: str, role: str):
        """A box with one bar for each block; those that feed a decoder of ``online encoder`` have its color."""
        self.box(x, y, width, 92, [name], role, top=24)
        left = x + (width - 140) / 2
        for block in range(BLOCKS):
            taken = {0: 'pixels', BLOCKS - 1: 'features'}.get(block, 'edge') if role == 'line' else 'edge'
            self.parts.append(
                f'<rect x="{left + 12 * block}" y="{y + 36}" width="8" height="44" rx="2" fill="{self.theme[taken]}"/>'
            )

    def picture(self, x: float, y: float, side: float, kind: str):
        """The image: ``whole``, what the encoder sees (``visible``), or a target of the masked patches."""
        inside = ''.join(f'<path fill="{color}" d="{shape}"/>' for shape, color in SCENE)
        if kind == 'visible':
            inside += patches(self.mask, self.theme['hidden'])
        elif kind == 'pixels':
            inside += patches(~self.mask, self.theme['box'])
        elif kind == 'features':
            inside = patches(~self.mask, self.theme['box']) + regions(self.mask)
        self.parts.append(
            f'<g transform="translate({x} {y}) scale({side / SIDE:g})">{inside}</g>'
            f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="none" stroke="{self.theme["edge"]}"/>'
        )

    def arrow(self, points: Sequence[Point], role: str = 'line', dashed: bool = False, both: bool = False):
        """A line through points with a head at its end, or at both ends."""
        d = ''.join(f'{"L" if number else "M"}{x:g} {y:g}' for number, (x, y) in enumerate(points))
        style = ' stroke-dasharray="5 4"' if dashed else ''
        color = self.theme[role]
        self.parts.append(f'<path d="{d}" fill="none" stroke="{color}" stroke-width="1.8"{style}/>')
        for (x0, y0), (x, y) in [(points[-2], points[-1])] + [(points[1], points[0])] * both:
            dx, dy = np.sign(x - x0), np.sign(y - y0)
            tip, wing = (x + 6 * dx, y + 6 * dy), [(x - 3 * dx + 5 * s * dy, y - 3 * dy + 5 * s * dx) for s in (1, -1)]
            corners = ' '.join(f'{a:g},{b:g}' for a, b in [tip, *wing])
            self.parts.append(f'<polygon points="{corners}" fill="{color}"/>')

    def svg(self) -> str:
        """The text of the file."""
        width, height = self.size
        return '\n'.join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" font-family="{FONT}" font-size="14" role="img">',
                f'<title>{DESCRIPTION}</title>',
                *self.parts,
                '</svg>\n',
            ]
        )


def wide(theme: dict[str, str]) -> str:
    """From left to right, for screens of at least 600 pixels."""
    draw = Drawing(900, 392, theme)
    draw.picture(16, 152, 112, 'whole')
    draw.text(72, 282, 'image')
    draw.arrow([(128, 190), (156, 190), (156, 112), (176, 112)])
    draw.picture(184, 56, 112, 'visible')
    draw.text(240, 188, 'visible patches, 25 %')
    draw.arrow([(296, 112), (348, 112)])
    draw.encoder(356, 66, 168, 'online encoder', 'line')
    draw.arrow([(128, 226), (156, 226), (156, 326), (348, 326)])
    draw.text(250, 316, 'whole image', 'muted')
    draw.encoder(356, 280, 168, 'momentum encoder', 'momentum')
    draw.arrow([(440, 158), (440, 272)], 'momentum', dashed=True)
    draw.text(430, 214, 'EMA of the weights,', 'momentum', 'end')
    draw.text(430, 233, 'no gradient', 'momentum', 'end')

    draw.arrow([(524, 112), (566, 112), (566, 78), (602, 78)])
    draw.arrow([(566, 112), (566, 186), (602, 186)])
    draw.arrow([(374, 66), (374, 26), (670, 26), (670, 38)], 'pixels')
    draw.text(522, 18, 'cross-attention to block 0: low-level features', 'pixels')
    draw.arrow([(506, 158), (506, 212), (602, 212)], 'features')
    draw.text(452, 250, 'cross-attention to block 11: deep features', 'features', 'start')
    draw.box(610, 46, 120, 64, ['pixel', 'decoder'], 'pixels')
    draw.box(610, 166, 120, 64, ['feature', 'decoder'], 'features')

    for y, kind, name in ((78, 'pixels', 'normalized pixels'), (198, 'features', 'features')):
        draw.picture(784, y - 42, 84, kind)
        draw.arrow([(738, y), (776, y)], kind, both=True)
        draw.text(757, y - 11, 'loss', kind)
        draw.text(826, y + 60, name)
    draw.arrow([(524, 326), (826, 326), (826, 276)], 'momentum')
    draw.text(670, 316, 'features of the whole image', 'muted')
    return draw.svg()


def tall(theme: dict[str, str]) -> str:
    """From top to bottom, for narrow screens."""
    draw = Drawing(400, 530, theme)
    draw.text(99, 20, 'visible patches, 25 %')
    draw.text(311, 20, 'image')
    draw.picture(50, 30, 98, 'visible')
    draw.picture(262, 30, 98, 'whole')
    draw.arrow([(262, 79), (156, 79)])
    draw.text(208, 70, 'mask', 'muted')
    draw.arrow([(99, 128), (99, 158)])
    draw.arrow([(311, 128), (311, 158)])
    draw.encoder(15, 166, 168, 'online encoder', 'line')
    draw.encoder(231, 166, 160, 'momentum encoder', 'momentum')
    draw.arrow([(183, 212), (223, 212)], 'momentum', dashed=True)
    draw.text(207, 202, 'EMA', 'momentum')

    draw.arrow([(33, 258), (33, 322)], 'pixels')
    draw.arrow([(165, 258), (165, 322)], 'features')
    draw.arrow([(99, 258), (99, 290), (70, 290), (70, 322)])
    draw.arrow([(99, 290), (130, 290), (130, 322)])
    draw.text(40, 279, 'block 0', 'pixels', 'start')
    draw.text(158, 279, 'block 11', 'features', 'end')
    draw.box(15, 330, 80, 56, ['pixel', 'decoder'], 'pixels')
    draw.box(108, 330, 80, 56, ['feature', 'decoder'], 'features')

    draw.picture(20, 432, 70, 'pixels')
    draw.arrow([(55, 394), (55, 424)], 'pixels', both=True)
    draw.text(68, 414, 'loss', 'pixels', 'start')
    draw.text(15, 522, 'normalized pixels', anchor='start')
    draw.picture(276, 323, 70, 'features')
    draw.arrow([(311, 258), (311, 315)], 'momentum')
    draw.arrow([(196, 358), (268, 358)], 'features', both=True)
    draw.text(232, 347, 'loss', 'features')
    draw.text(311, 414, 'features')
    draw.text(391, 460, 'The decoders attend to', 'muted', 'end')
    draw.text(391, 479, 'blocks 0 and 11 of 12.', 'muted', 'end')
    return draw.svg()


def figures() -> dict[Path, str]:
    """Text of each file by its path in the repository."""
    layouts = {'method': wide, 'method-tall': tall}
    return {
        FOLDER / f'{name}-{theme}.svg': layout(THEMES[theme]) for name, layout in layouts.items() for theme in THEMES
    }


def figures_behind(root: Path) -> dict[Path, str]:
    """Files that are missing or differ from what is drawn, with their text."""
    return {root / path: text for path, text in figures().items() if not _holds(root / path, text)}


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding='utf-8') == text
