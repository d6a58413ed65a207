"""Pictures of predictions: position, color and order of everything that is drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from bootmae.report import detection_grid, segmentation_grid
from bootmae.visualization.grids import GUTTER, HEADING, tile_origin
from bootmae.visualization.predictions import DIMMED, KEY_INK, KEY_LINE, KEY_PAD, KEY_PAPER, OPACITY, SWATCH

H, W, SCALE = 24, 32, 3
PALETTE = [(40, 40, 40), (230, 20, 0), (0, 60, 250)]
CLASSES = ('ground', 'red', 'blue')
TAB = 15  # rows of a box that its name covers


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2, H, W, 3), dtype=np.uint8)


def decode(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def tile(grid, row, column):
    """An enlarged tile of a grid, without the alpha channel."""
    top, left = tile_origin(row, column, H * SCALE, W * SCALE)
    return grid[top : top + H * SCALE, left : left + W * SCALE, :3]


def gray_of(image):
    red, green, blue = np.moveaxis(image.astype(float), -1, 0)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def mixed(image, color):
    """Expected blend of a class color and the gray image (H, W, 3)."""
    return (1 - OPACITY) * gray_of(image)[..., None] + OPACITY * np.array(color, dtype=float)


def column_of(headings, grid):
    """Whether each column has a heading."""
    return [
        bool((grid[:HEADING, left : left + W * SCALE, 3] > 100).any())
        for left in (column * (W * SCALE + GUTTER) for column in range(headings))
    ]


# ---- segmentation


def label_maps():
    truth = np.zeros((2, H, W), dtype=np.int64)
    truth[:, 4:10, 6:20] = 1
    truth[1, 15:20, 2:9] = 2
    truth[0, 0, :5] = 255
    return {
        'bootmae': truth.clip(max=2),
        'truth': truth,
        'MAE': np.full((2, H, W), 2, np.uint8),
        'untrained': np.zeros((2, H, W), np.int32),
    }


def test_segmentation_columns_are_image_truth_untrained_mae_bootmae(images):
    given = label_maps()
    grid = decode(segmentation_grid(images, given, PALETTE, scale=SCALE))
    assert grid.shape == (HEADING + 2 * H * SCALE + GUTTER, 5 * W * SCALE + 4 * GUTTER, 4)
    assert column_of(5, grid) == [True] * 5
    for row in range(2):
        np.testing.assert_array_equal(tile(grid, row, 0), images[row].repeat(SCALE, 0).repeat(SCALE, 1))
        for column, name in enumerate(['truth', 'untrained', 'MAE', 'bootmae'], start=1):
            labels = given[name][row]
            expected = np.where(
                (labels == 255)[..., None],
                gray_of(images[row])[..., None],
                mixed(images[row], np.array(PALETTE)[np.where(labels == 255, 0, labels)]),
            )
            np.testing.assert_allclose(tile(grid, row, column), expected.repeat(SCALE, 0).repeat(SCALE, 1), atol=0.51)


def test_key_names_the_classes_that_occur_in_their_colors(images):
    truth = np.zeros((2, H, W), dtype=int)
    truth[0, 3, 3] = 2
    plain = decode(segmentation_grid(images, {'truth': truth}, PALETTE, scale=SCALE))
    keyed = decode(segmentation_grid(images, {'truth': truth}, PALETTE, CLASSES, scale=SCALE))
    np.testing.assert_array_equal(keyed[: len(plain)], plain)
    assert len(keyed) == len(plain) + GUTTER + KEY_LINE + KEY_PAD
    strip = keyed[len(plain) + GUTTER :]
    assert (strip[..., 3] == 255).all()
    middle = strip[KEY_PAD // 2 + KEY_LINE // 2, :, :3]
    assert middle[KEY_PAD + SWATCH // 2].tolist() == [40, 40, 40]  # the first entry is ground
    assert (middle == [0, 60, 250]).all(axis=-1).sum() == SWATCH - 2  # inside its outline
    assert (middle == [230, 20, 0]).all(axis=-1).sum() == 0  # red does not occur
    assert (np.abs(strip[..., :3] - KEY_INK).max(axis=-1) < 30).sum() > 20  # letters
    assert strip[0, 0, :3].tolist() == list(KEY_PAPER)


def test_key_tells_of_pixels_without_annotation_and_wraps(images):
    truth = np.zeros((2, H, W), dtype=int)
    heights = [
        len(decode(segmentation_grid(images, {'truth': labels}, PALETTE, names, scale=SCALE)))
        for labels, names in (
            (truth, CLASSES),
            (truth.clip(0), ['x' * 20, 'red', 'blue']),
            (np.where(np.arange(W) < 4, 255, truth), ['x' * 20, 'red', 'blue']),
        )
    ]
    assert heights[0] == heights[1] == heights[2] - KEY_LINE


def test_small_images_are_enlarged_and_large_ones_not():
    def width(side):
        images = np.zeros((1, side, side, 3), np.uint8)
        return decode(segmentation_grid(images, {'truth': np.zeros((1, side, side), int)}, PALETTE)).shape[1]

    assert [width(side) for side in (48, 64, 96, 512)] == [2 * 192 + 4, 2 * 192 + 4, 2 * 192 + 4, 2 * 512 + 4]


@pytest.mark.parametrize(
    ('panel', 'message'),
    [
        (np.zeros((2, H, W)), r"panel 'mae' is float64 \(2, 24, 32\); give integers \(2, 24, 32\)"),
        (np.zeros((1, H, W), int), r"panel 'mae' is int64 \(1, 24, 32\); give integers"),
        (np.full((2, H, W), 3), "panel 'mae' holds the label 3, but the palette has 3 colors; labels are 0 to 2"),
        (np.full((2, H, W), -1), "panel 'mae' holds the label -1"),
    ],
)
def test_segmentation_refuses_other_labels(images, panel, message):
    with pytest.raises(ValueError, match=message):
        segmentation_grid(images, {'mae': panel}, PALETTE)


def test_other_images_palettes_and_names_are_refused(images):
    labels = np.zeros((2, H, W), int)
    with pytest.raises(ValueError, match='the images are float64'):
        segmentation_grid(images / 255, {'truth': labels}, PALETTE)
    with pytest.raises(ValueError, match='no panel'):
        segmentation_grid(images, {}, PALETTE)
    with pytest.raises(ValueError, match=r'the palette has the shape \(3,\)'):
        segmentation_grid(images, {'truth': labels}, [1, 2, 3])
    with pytest.raises(ValueError, match='2 class names and 3 colors'):
        segmentation_grid(images, {'truth': labels}, PALETTE, CLASSES[:2])


# ---- detection


def instance(box, label, score=None, mask=True):
    x1, y1, x2, y2 = (round(value) for value in box)
    shape = np.zeros((1, H, W), dtype=bool)
    shape[0, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] = True
    return dict(
        boxes=np.array([box], float),
        labels=np.array([label]),
        masks=shape if mask else None,
        scores=None if score is None else np.array([score]),
    )


NOTHING = dict(boxes=np.zeros((0, 4)), labels=np.zeros(0, int), masks=np.zeros((0, H, W), bool), scores=None)


def joined(*parts):
    return {key: None if parts[0][key] is None else np.concatenate([part[key] for part in parts]) for key in parts[0]}


def drawn(images, panel, **options):
    return tile(decode(detection_grid(images, {'truth': panel}, CLASSES, PALETTE, scale=SCALE, **options)), 0, 1)


def test_box_is_outlined_mask_tinted_and_the_rest_dim(images):
    found = drawn(images, [instance((10, 8, 20, 18), 1), NOTHING])
    red = np.array(PALETTE[1])
    top, left, bottom, right = 8 * SCALE, 10 * SCALE, 18 * SCALE - 1, 20 * SCALE - 1
    for line in (
        found[top, left : right + 1],
        found[bottom, left : right + 1],
        found[top : bottom + 1, left],
        found[top : bottom + 1, right],
        found[top + 1, left : right + 1],
    ):
        assert (line == red).all()
    assert (found[bottom + 1, left : right + 1] != red).any()
    inside = found[top + SCALE : bottom + 1 - SCALE, left + SCALE : right + 1 - SCALE]
    expected = mixed(images[0], red)[9:17, 11:19]
    np.testing.assert_allclose(inside[TAB:], expected.repeat(SCALE, 0).repeat(SCALE, 1)[TAB:], atol=0.51)
    outside = (DIMMED * gray_of(images[0]))[19:, :, None].repeat(SCALE, 0).repeat(SCALE, 1)
    np.testing.assert_allclose(found[19 * SCALE :], np.broadcast_to(outside, found[19 * SCALE :].shape), atol=0.51)


def test_name_stands_in_the_corner_of_its_box(images):
    found = drawn(images, [instance((10, 4, 30, 22), 1), NOTHING])
    tab = found[4 * SCALE + 3 : 4 * SCALE + 14, 10 * SCALE + 3 : 10 * SCALE + 20]
    assert (tab == PALETTE[1]).all(axis=-1).mean() > 0.3
    assert (tab.min(axis=-1) > 150).sum() > 5  # white letters on dark red
    below = found[12 * SCALE : 20 * SCALE, 12 * SCALE : 28 * SCALE]
    assert not (below == PALETTE[1]).all(axis=-1).any()


def test_columns_and_rows_of_instances(images):
    panels = {'mae': [NOTHING, instance((4, 4, 12, 12), 2)], 'truth': [instance((4, 4, 12, 12), 1), NOTHING]}
    grid = decode(detection_grid(images, panels, CLASSES, PALETTE, scale=SCALE))
    here = [[tile(grid, row, column)[4 * SCALE, 10 * SCALE].tolist() for column in range(3)] for row in range(2)]
    assert here[0][1] == list(PALETTE[1])
    assert here[1][2] == list(PALETTE[2])
    assert [list(PALETTE[1]), list(PALETTE[2])] not in (here[0][2], here[1][1])
    for row in range(2):
        np.testing.assert_array_equal(tile(grid, row, 0), images[row].repeat(SCALE, 0).repeat(SCALE, 1))


def test_best_score_lies_on_top_and_low_ones_are_left_out(images):
    box = (6, 6, 16, 16)
    corner = (6 * SCALE, 15 * SCALE)
    for scores, expected in (((0.9, 0.5), 1), ((0.5, 0.9), 2), ((0.29, 0.3), 2), ((0.3, 0.29), 1)):
        panel = joined(instance(box, 1, scores[0]), instance(box, 2, scores[1]))
        assert drawn(images, [panel, NOTHING])[corner].tolist() == list(PALETTE[expected])
    low = instance(box, 1, 0.29)
    assert drawn(images, [low, NOTHING])[corner].tolist() != list(PALETTE[1])
    assert drawn(images, [low, NOTHING], min_score=0.2)[corner].tolist() == list(PALETTE[1])


def test_without_masks_only_boxes_are_drawn(images):
    found = drawn(images, [instance((10, 8, 20, 18), 1, mask=False), NOTHING])
    inside = found[14 * SCALE : 17 * SCALE, 12 * SCALE : 18 * SCALE]
    expected = (DIMMED * gray_of(images[0]))[14:17, 12:18, None].repeat(SCALE, 0).repeat(SCALE, 1)
    np.testing.assert_allclose(inside, np.broadcast_to(expected, inside.shape), atol=0.51)


def test_boxes_beyond_the_image_and_without_extent_are_drawn_inside(images):
    found = drawn(images, [joined(instance((-5, -5, 40, 30), 1), instance((7, 7, 7, 7), 2)), NOTHING])
    for corner in ((-1, 0), (-1, -1)):
        assert found[corner].tolist() == list(PALETTE[1])
    assert found[7 * SCALE, 7 * SCALE].tolist() == list(PALETTE[2])


@pytest.mark.parametrize(
    ('panel', 'message'),
    [
        ([NOTHING], "panel 'mae' has instances of 1 image; give one entry for each of the 2 images"),
        ([{**instance((1, 1, 9, 9), 1), 'labels': np.array([1, 2])}, NOTHING], '1 box, 2 labels, 1 mask and no scores'),
        ([instance((1, 1, 9, 9), 3), NOTHING], "panel 'mae' holds the label 3"),
    ],
)
def test_detection_refuses_other_instances(images, panel, message):
    with pytest.raises(ValueError, match=message):
        detection_grid(images, {'mae': panel}, CLASSES, PALETTE)


def test_key_of_instances_lists_what_is_drawn_and_the_threshold(images):
    low = joined(instance((1, 1, 9, 9), 1, 0.1), instance((12, 12, 20, 20), 2, 0.8))
    grid = decode(detection_grid(images, {'mae': [low, NOTHING]}, CLASSES, PALETTE, scale=SCALE))
    strip = grid[HEADING + 2 * H * SCALE + 2 * GUTTER :, :, :3]
    assert (strip == PALETTE[2]).all(axis=-1).sum() == (SWATCH - 2) ** 2
    assert not (strip == PALETTE[1]).all(axis=-1).any()
    without = joined(NOTHING, NOTHING)
    bare = decode(detection_grid(images, {'mae': [without, without]}, CLASSES, PALETTE, scale=SCALE))
    assert len(bare) == HEADING + 2 * H * SCALE + GUTTER
    unscored = detection_grid(images, {'mae': [{**low, 'scores': None}, NOTHING]}, CLASSES, PALETTE, scale=SCALE)
    assert len(decode(unscored)) < len(grid)  # the note on scores takes a line
