"""A generated data set for the demo and the tests, in which the weakly supervised problem is real.

`list_shapes` is called through `datasets.DATASETS`. Every object has one small badge, whose pattern and hue belong
to its class, on a plain body whose colour says nothing about the class and whose outline says little: a classifier's
CAM fires on the badge, and a CRF must grow it to the body. Backgrounds are textured and cluttered, one to three classes
share an image, and boats are mostly seen on waves, so that waves look like evidence of boats. An image depends on
(`data.shapes.seed`, split, number, `data.shapes.size`) only.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from distwsss.config.data import DataSection
from distwsss.data.images import IGNORE, encode_jpeg, encode_palette
from distwsss.data.sources.listing import BACKGROUND, Item, Listing
from distwsss.errors import ConfigError
from distwsss.runtime.seeding import numpy_generator

CLASSES = [BACKGROUND, "boat", "drum", "fan", "kite", "lamp", "tent"]
BOAT = CLASSES.index("boat")
HUES = [0.0, 0.58, 0.97, 0.33, 0.80, 0.14, 0.46]  # of the badges, by class id
CORNERS = [0, 3, 0, 4, 4, 5, 3]  # the outline a class prefers, by class id; 0: an ellipse
FAVOURITE_OUTLINE = 0.4  # how often an object has its class's outline; else any
# Of ten images with waves six have a boat. At 0.9 and 0.06 nearly all had, and every classifier called waves a boat:
# where all seeds err alike, no vote can tell.
WAVES_WITH_BOAT, WAVES_WITHOUT = 0.75, 0.15
# A body lets half of the ground's texture through: where bodies stand out fully, the best single seed of a well trained
# classifier leaves nothing to gain, neither for an aggregate nor for a loss.
OPACITY = 0.5

Array = np.ndarray


@dataclass
class Scene:
    """One drawn image and what is true of it."""

    image: Array  # uint8[S,S,3]
    mask: Array  # uint8[S,S], class ids, 255 on outlines
    badges: Array  # bool[S,S], the discriminative parts
    labels: list[int]
    waves: bool


def list_shapes(data: DataSection, split: str) -> Listing:
    """`data.shapes.train` or `.val` generated images; no items for a split of another name."""
    if data.labels_from != "auto" or data.classes is not None:
        raise ConfigError("`data.labels_from` and `data.classes` do not apply to `shapes`; leave them out")
    count = {data.val_split: data.shapes.val, data.train_split: data.shapes.train}.get(split, 0)
    items = []
    for number in range(count):
        scene = draw_scene(data.shapes.seed, split, number, data.shapes.size)
        image, mask = encode_jpeg(scene.image), encode_palette(scene.mask)
        items.append(Item(f"{split}-{number:05d}", image, scene.labels, mask))
    where = f"`data.shapes`, which has the splits {data.train_split} and {data.val_split}"
    return Listing(list(CLASSES), items, "generated", where)


def draw_scene(seed: int, split: str, number: int, size: int) -> Scene:
    """Scene `number` of a split, `size` pixels wide and high."""
    rng = numpy_generator("shapes", seed, split, number)
    objects = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    wanted = [int(label) for label in rng.permutation(np.arange(1, len(CLASSES)))[:objects]]
    waves = bool(rng.random() < (WAVES_WITH_BOAT if BOAT in wanted else WAVES_WITHOUT))
    canvas = _background(rng, size, waves)
    mask, badges = np.zeros((size, size), np.uint8), np.zeros((size, size), bool)
    placed: list[tuple[float, float, float]] = []
    for label in wanted:
        circle = _free_circle(rng, size, placed, objects)
        if circle is not None:
            placed.append(circle)
            _draw_object(rng, canvas, mask, badges, label, circle)
    labels = sorted(int(label) for label in np.unique(mask) if label)
    mask[_outlines(mask)] = IGNORE
    canvas += rng.normal(0, 3, canvas.shape)
    return Scene(canvas.clip(0, 255).astype(np.uint8), mask, badges, labels, waves)


def _color(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)) * 255


def _noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Smooth noise float64[S,S] of about `cells` bumps a side, in about [-1, 1]."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC), np.float64)


def _background(rng: np.random.Generator, size: int, waves: bool) -> Array:
    """float64[S,S,3], 0..255: mid-tones with texture at several scales, and strokes and specks that mean nothing."""
    hue = 0.56 + rng.uniform(-0.04, 0.04) if waves else rng.random()
    canvas = np.broadcast_to(_color(hue, rng.uniform(0.2, 0.45), rng.uniform(0.45, 0.6)), (size, size, 3)).copy()
    for cells, strength in ((3, 22), (8, 16), (24, 12)):
        canvas += strength * _noise(rng, size, cells)[..., None]
        canvas += 0.5 * strength * np.stack([_noise(rng, size, cells) for _ in range(3)], -1)
    if waves:
        y, x = np.mgrid[0:size, 0:size] / size
        bend = 0.03 * np.sin(2 * np.pi * (rng.uniform(2, 4) * x + rng.random())) + 0.02 * _noise(rng, size, 5)
        canvas += 30 * np.sin(2 * np.pi * rng.uniform(8, 11) * (y + bend))[..., None] * np.array([0.8, 1.0, 1.0])
    for _ in range(rng.integers(4, 9)):
        _stroke(rng, canvas)
    return canvas


def _stroke(rng: np.random.Generator, canvas: Array) -> None:
    """A bent line or, when short, a speck, of any colour."""
    size = len(canvas)
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    angle, center = rng.uniform(0, 2 * np.pi), rng.uniform(0, size, 2)
    along = (x - center[0]) * np.cos(angle) + (y - center[1]) * np.sin(angle)
    across = (y - center[1]) * np.cos(angle) - (x - center[0]) * np.sin(angle)
    length, width = size * rng.uniform(0.02, 0.35), size * rng.uniform(0.006, 0.018)
    bent = across + rng.uniform(-0.6, 0.6) / size * along**2
    cover = (width - np.abs(bent)).clip(0, 1) * (length - np.abs(along)).clip(0, 1) * rng.uniform(0.6, 1)
    _paint(canvas, cover, _color(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.15, 0.9)))


def _paint(canvas: Array, cover: Array, color: Array) -> None:
    canvas += cover[..., None] * (color - canvas)


def _free_circle(
    rng: np.random.Generator, size: int, placed: list[tuple[float, float, float]], objects: int
) -> tuple[float, float, float] | None:
    """Centre and radius of a place for an object, hardly touching the others; None if none is found."""
    largest = {1: 0.36, 2: 0.29, 3: 0.24}[objects]
    for _ in range(40):
        radius = size * rng.uniform(0.72, 1) * largest
        x, y = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
        if all(np.hypot(x - a, y - b) > 0.95 * (radius + r) for a, b, r in placed):
            return float(x), float(y), float(radius)
    return None


def _draw_object(
    rng: np.random.Generator, canvas: Array, mask: Array, badges: Array, label: int, circle: tuple[float, float, float]
) -> None:
    """A plain body inside `circle`, and the badge of class `label` somewhere on it."""
    size, (cx, cy, radius) = len(canvas), circle
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    body = _body(rng, x - cx, y - cy, radius, label)
    bright = 0.9 if rng.random() < 0.5 else 0.22
    color = _color(rng.random(), rng.uniform(0.05, 0.35), bright + rng.uniform(-0.06, 0.06))
    shade = 1 + 0.08 * ((x - cx) * rng.uniform(-1, 1) + (y - cy) * rng.uniform(-1, 1)) / radius
    _paint(canvas, OPACITY * body, color * shade[..., None])
    angle, reach = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0, 0.2)
    u, v = x - cx - reach * np.cos(angle), y - cy - reach * np.sin(angle)
    half = radius * rng.uniform(0.3, 0.36)
    disc = (half - np.hypot(u, v) + 0.5).clip(0, 1) * body
    hue = HUES[label] + rng.uniform(-0.025, 0.025)
    _paint(canvas, disc * _pattern(label, u / half, v / half), _color(hue, 0.95, 0.95 if bright < 0.5 else 0.75))
    mask[body > 0.5] = label
    badges |= disc > 0.5


def _body(rng: np.random.Generator, x: Array, y: Array, radius: float, label: int) -> Array:
    """Cover 0..1 of an outline r(angle): an ellipse or a polygon, stretched, turned and a little wavy."""
    corners = CORNERS[label] if rng.random() < FAVOURITE_OUTLINE else int(rng.choice([0, 3, 4, 5]))
    turn, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.0)
    u = x * np.cos(turn) + y * np.sin(turn)
    v = (y * np.cos(turn) - x * np.sin(turn)) / aspect
    angle = np.arctan2(v, u)
    edge = radius * (1 + 0.05 * np.cos(rng.integers(2, 5) * angle + turn))
    if corners:
        slice_ = 2 * np.pi / corners
        # A triangle's inner circle is half its outer one: it gets a larger outer circle, to have room for a badge.
        edge *= (1.3 if corners == 3 else 1) * np.cos(slice_ / 2) / np.cos(angle % slice_ - slice_ / 2)
    return (edge - np.hypot(u, v) + 0.5).clip(0, 1)


def _pattern(label: int, u: Array, v: Array) -> Array:
    """Cover 0..1 of the badge of a class on coordinates that reach -1..1 on the badge."""
    patterns: dict[int, Callable[[], Array]] = {
        1: lambda: np.cos(2 * np.pi * 1.25 * v),  # stripes
        2: lambda: np.cos(np.pi * 1.6 * u) * np.cos(np.pi * 1.6 * v),  # checkers
        3: lambda: np.cos(2 * np.pi * 1.25 * np.hypot(u, v)),  # rings
        4: lambda: 0.28 - np.minimum(np.abs(u), np.abs(v)),  # a cross
        5: lambda: np.cos(2 * np.pi * 1.1 * u) + np.cos(2 * np.pi * 1.1 * v) - 0.3,  # dots
        6: lambda: np.cos(2 * np.pi * 0.9 * (u + v)),  # slanted stripes
    }
    return (0.5 + 3 * patterns[label]()).clip(0, 1)


def _outlines(mask: Array) -> Array:
    """bool[S,S]: object pixels beside another value, as the outlines that VOC leaves out."""
    edge = np.zeros(mask.shape, bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return edge & (mask > 0)
