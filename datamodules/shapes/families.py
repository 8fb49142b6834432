"""Procedural shapes: chairs, tables, lamps, cars and unions of primitives, each drawn from a random generator.

Shapes stand on the plane of x and z, y up; chairs face along z, with the back at negative z, and cars drive along z. Lengths
are about metres.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from datamodules.randomness import seed_at
from datamodules.shapes.parts import (
    Arc,
    Array,
    Capsule,
    Colour,
    Cone,
    Cuboid,
    Part,
    Placed,
    Prism,
    Solid,
    Sphere,
    Torus,
    rotation,
    towards,
)

Family = Literal["chairs", "tables", "lamps", "cars", "unions"]
Generator = np.random.Generator

VERSION = 1  # of the generators: increase it if the same address gives another shape

_OVERLAP = 0.005  # of parts that are joined, so that no wall is left between them

_WOODS: tuple[Colour, ...] = ((0.55, 0.36, 0.2), (0.72, 0.53, 0.33), (0.36, 0.22, 0.13), (0.85, 0.72, 0.52))
_METALS: tuple[Colour, ...] = ((0.75, 0.76, 0.78), (0.25, 0.25, 0.27), (0.55, 0.5, 0.42))
_GLASS: tuple[Colour, ...] = ((0.12, 0.15, 0.2), (0.35, 0.45, 0.55), (0.55, 0.68, 0.75))
_TYRE: Colour = (0.08, 0.08, 0.09)
_HEADLIGHT: Colour = (0.95, 0.92, 0.75)
_TAIL_LIGHT: Colour = (0.75, 0.08, 0.06)


def generate(family: Family, *address: int | str) -> Solid:
    """Return the normalised solid at an address, the same in every run.

    Args:
        family: Kind of shape.
        address: For example the seed of the data set and the index of the shape.

    Example:
        >>> len(generate("tables", 0, "train", 7).parts) == len(generate("tables", 0, "train", 7).parts)
        True
    """
    return FAMILIES[family](np.random.default_rng(seed_at("procedural shape", family, *address))).normalized()


def chair(generator: Generator) -> Solid:
    """Return a chair, armchair or stool."""
    if generator.random() < 0.18:
        return Solid(tuple(_armchair(generator)))
    is_stool = generator.random() < 0.15
    width, depth = generator.uniform(0.36, 0.62), generator.uniform(0.36, 0.6)
    height = generator.uniform(0.55, 0.85) if is_stool else generator.uniform(0.34, 0.52)
    thickness = generator.choice([generator.uniform(0.02, 0.05), generator.uniform(0.05, 0.14)])
    frame, cover = _colours(generator)
    is_round = generator.random() < 0.3
    if is_round:
        depth = width
    parts = [_seat(generator, width, depth, height, thickness, is_round, cover)]
    parts += _support(generator, width, depth, height - thickness + _OVERLAP, is_round, frame)
    if generator.random() < (0.45 if is_stool else 0.93):
        rise = generator.uniform(0.15, 0.35) if is_stool else generator.uniform(0.3, 0.65)
        lean = generator.uniform(0.0, 0.4)
        parts += _back(generator, width, depth, height, rise, lean, frame, cover, is_round)
        if not is_stool and generator.random() < 0.3:
            parts += _arms(generator, width, depth, height, rise, frame)
    return Solid(tuple(parts))


def table(generator: Generator) -> Solid:
    """Return a table, desk or bench."""
    width, depth = generator.uniform(0.6, 2.0), generator.uniform(0.5, 1.0)
    height, thickness = generator.uniform(0.35, 1.0), generator.uniform(0.02, 0.1)
    frame, top_colour = _colours(generator)
    is_round = generator.random() < 0.3
    if is_round:
        depth = width = min(width, 1.4)
    parts = [_seat(generator, width, depth, height, thickness, is_round, top_colour)]
    parts += _support(generator, width, depth, height - thickness + _OVERLAP, is_round, frame)
    if not is_round and generator.random() < 0.3:  # a shelf, or the drawers of a desk
        level = generator.uniform(0.15, 0.8) * height
        parts.append(_block((0.9 * width, 0.02 + 0.15 * generator.random() ** 2, 0.85 * depth), (0, level, 0), frame))
    return Solid(tuple(parts))


def lamp(generator: Generator) -> Solid:
    """Return a standing, desk or hanging lamp."""
    metal, shade = _pick(generator, _METALS), _any_colour(generator)
    height, base = generator.uniform(0.6, 1.6), generator.uniform(0.12, 0.3)
    radius = generator.uniform(0.008, 0.03)
    flat = generator.uniform(0.015, 0.06)
    shape = generator.choice(["cone", "ball", "tube"])
    size = generator.uniform(0.1, 0.3)
    hangs = generator.random() < 0.25
    parts = []
    if hangs:
        parts.append(_upright(Cone(0.4 * base, 0.4 * base, flat), (0, height, 0), metal))
    else:
        foot: Part = Cone(base, base * generator.uniform(0.5, 1.0), flat)
        parts.append(_upright(foot, (0, flat / 2, 0), metal))
    arm = generator.random() < 0.35 and not hangs
    top = np.array((0.0, height, 0.0))
    if arm:  # two straight pieces
        elbow = np.array((-generator.uniform(0.05, 0.3), generator.uniform(0.5, 0.8) * height, 0.0))
        top = np.array((generator.uniform(0.1, 0.5), height * generator.uniform(0.7, 1.0), 0.0))
        parts += [_bar(np.array((0.0, flat, 0.0)), elbow, radius, metal), _bar(elbow, top, radius, metal)]
    else:
        parts.append(_bar(np.array((0.0, 0.0 if not hangs else 0.35 * height, 0.0)), top, radius, metal))
    at = top if not hangs else np.array((0.0, 0.35 * height, 0.0))
    if shape == "ball":
        parts.append(_upright(Sphere(size * 0.7), at, shade))
    elif shape == "cone":
        cone = Cone(size, size * generator.uniform(0.3, 0.8), size * generator.uniform(0.8, 1.6))
        tilt = generator.uniform(-0.5, 0.1) if arm else 0.0
        parts.append(Placed(cone, rotation((0, 0, 1), tilt), at, colour=shade))
    else:
        parts.append(_upright(Cone(size * 0.6, size * 0.6, size * generator.uniform(1.0, 2.0)), at, shade))
    return Solid(tuple(parts))


def car(generator: Generator) -> Solid:
    """Return a saloon, hatchback, van or pickup."""
    kind = generator.choice(["saloon", "hatchback", "van", "pickup"], p=[0.4, 0.25, 0.2, 0.15])
    length, width = generator.uniform(3.3, 5.0), generator.uniform(1.55, 1.95)
    radius, tread = generator.uniform(0.26, 0.4), generator.uniform(0.16, 0.26)
    floor, height = radius * generator.uniform(0.5, 0.95), generator.uniform(0.45, 0.75)
    paint, glass = _any_colour(generator), _pick(generator, _GLASS)
    top = max(floor + height, 2 * radius + 0.12)  # above the wheels
    parts = [_car_body(generator, length, width, floor, top, 2 * radius + 0.05, paint)]
    parts += _car_cabin(generator, str(kind), length, width, top, paint, glass)
    parts += _car_wheels(generator, length, width, radius, tread)
    parts += _car_lights(generator, length, width, floor, top)
    if generator.random() < 0.6:  # bumpers
        colour = _pick(generator, _METALS)
        size = (0.96 * width, generator.uniform(0.1, 0.2), 0.12)
        parts += [_block(size, (0, floor + 0.12, side * length / 2), colour) for side in (-1, 1)]
    return Solid(tuple(parts))


def union(generator: Generator) -> Solid:
    """Return the union of two to five boxes, spheres, tori, capsules and truncated cones in random poses."""
    parts: list[Placed] = []
    for _ in range(generator.integers(2, 6)):
        size = generator.uniform(0.15, 0.5)
        kinds: tuple[Part, ...] = (
            Cuboid(tuple(size * generator.uniform(0.3, 2.0, 3)), 0.0),
            Sphere(size),
            Torus(size, size * generator.uniform(0.15, 0.5)),
            Capsule(size * generator.uniform(0.5, 3.0), size * generator.uniform(0.2, 0.6)),
            Cone(size, size * generator.uniform(0.1, 1.0), size * generator.uniform(0.5, 3.0)),
        )
        part = kinds[generator.integers(len(kinds))]
        position = generator.uniform(-0.5, 0.5, 3) if parts else np.zeros(3)
        parts.append(Placed(part, towards(generator.normal(size=3)), position, colour=_any_colour(generator)))
    return Solid(tuple(parts))


FAMILIES: dict[Family, Callable[[Generator], Solid]] = {
    "chairs": chair,
    "tables": table,
    "lamps": lamp,
    "cars": car,
    "unions": union,
}


def _seat(
    generator: Generator, width: float, depth: float, height: float, thickness: float, is_round: bool, colour: Colour
) -> Placed:
    """Return a seat or table top, whose upper side is at ``height``."""
    centre = np.array((0.0, height - thickness / 2, 0.0))
    if is_round:
        return _upright(Cone(width / 2, width / 2, thickness), centre, colour)
    rounding = generator.choice([0.0, 0.15, 0.49]) * thickness
    return Placed(Cuboid((width, thickness, depth), rounding), np.eye(3), centre, colour=colour)


def _support(
    generator: Generator, width: float, depth: float, height: float, is_round: bool, colour: Colour
) -> list[Placed]:
    """Return what carries a plate at ``height``: four legs, a pedestal, a sled or crossed legs."""
    kind = generator.choice(["legs", "pedestal", "sled", "crossed", "block"], p=[0.62, 0.16, 0.08, 0.08, 0.06])
    radius = generator.uniform(0.008, 0.03) if generator.random() < 0.7 else generator.uniform(0.03, 0.05)
    inset = 0.7 if is_round else 1.0
    x, z = inset * (width / 2 - radius), inset * (depth / 2 - radius)
    if kind == "pedestal":
        flat = generator.uniform(0.01, 0.05)
        base = generator.uniform(0.3, 0.5) * min(width, 0.9)
        pole = _upright(Cone(radius, radius, height), (0, height / 2, 0), colour)
        if generator.random() < 0.6:
            foot = Cone(base, base * generator.uniform(0.2, 1.0), flat)
            return [pole, _upright(foot, (0, flat / 2, 0), colour)]
        count = int(generator.integers(4, 6))
        tips = [2 * math.pi * number / count for number in range(count)]
        hub = np.array((0.0, generator.uniform(0.04, 0.12), 0.0))
        feet = [np.array((base * math.sin(turn), 0.02, base * math.cos(turn))) for turn in tips]
        return [pole, *[_bar(hub, foot, 0.018, colour) for foot in feet]]
    if kind == "sled":
        bars = []
        for side in (-x, x):
            corners = [(side, height, z), (side, 0.0, z), (side, 0.0, -z), (side, height, -z)]
            if generator.random() < 0.5:
                corners = corners[:3]  # a cantilever
            points = [np.array(corner) for corner in corners]
            bars += [_bar(first, second, radius, colour) for first, second in itertools.pairwise(points)]
        return bars
    if kind == "crossed":
        bars = [
            _bar(np.array((side, height, end * z)), np.array((side, 0.0, -end * z)), radius, colour)
            for side in (-x, x)
            for end in (-1, 1)
        ]
        return [
            *bars,
            *[_bar(np.array((-x, 0.0, end * z)), np.array((x, 0.0, end * z)), radius, colour) for end in (-1, 1)],
        ]
    if kind == "block":
        share = generator.uniform(0.6, 0.98) * inset
        return [_block((share * width, height, share * depth), (0, height / 2, 0), colour)]
    return _legs(generator, x, z, height, radius, colour)


def _legs(generator: Generator, x: float, z: float, height: float, radius: float, colour: Colour) -> list[Placed]:
    """Return four legs, perhaps splayed, perhaps with bars between them."""
    splay = generator.choice([0.0, generator.uniform(0.0, 0.25)]) * height
    is_square = generator.random() < 0.35
    ends = [(sx, sz) for sx in (-1, 1) for sz in (-1, 1)]
    tops = [np.array((sx * x, height, sz * z)) for sx, sz in ends]
    feet = [np.array((sx * (x + splay * 0.7), 0.0, sz * (z + splay * 0.7))) for sx, sz in ends]
    make = _beam if is_square else _bar
    parts = [make(top, foot, radius, colour) for top, foot in zip(tops, feet, strict=True)]
    if generator.random() < 0.35:
        share = generator.uniform(0.15, 0.6)
        at = [foot + share * (top - foot) for top, foot in zip(tops, feet, strict=True)]
        pairs = [(0, 1), (2, 3), (0, 2), (1, 3)] if generator.random() < 0.6 else [(0, 1), (2, 3)]
        parts += [_bar(at[first], at[second], 0.6 * radius, colour) for first, second in pairs]
    return parts


def _back(
    generator: Generator,
    width: float,
    depth: float,
    height: float,
    rise: float,
    lean: float,
    frame: Colour,
    cover: Colour,
    is_round: bool,
) -> list[Placed]:
    """Return the back of a chair: a panel, slats, rungs, a cross, a shell or a bent tube."""
    kind = generator.choice(["panel", "slats", "rungs", "cross", "shell", "tube"], p=[0.4, 0.12, 0.12, 0.08, 0.18, 0.1])
    thickness, radius = generator.uniform(0.015, 0.06), generator.uniform(0.008, 0.022)
    wide = width * generator.uniform(0.75, 1.0)
    foot, tilt = np.array((0.0, height - 0.02, -depth / 2 + thickness / 2)), rotation((1, 0, 0), -lean)

    def at(across: float, up: float, forward: float = 0.0) -> Array:
        return np.asarray(foot + tilt @ np.array((across, up, forward)))

    if kind == "shell":
        return _shell(generator, wide, rise, thickness, at, tilt, cover)
    if kind == "tube":
        bend = wide / 2
        straight = max(rise - bend, 0.05)
        arc = Placed(Arc(bend, radius, math.pi / 2), tilt, at(0, straight), colour=frame)
        posts = [_bar(at(side * bend, 0), at(side * bend, straight), radius, frame) for side in (-1, 1)]
        middle = [_bar(at(0, 0), at(0, straight + bend), 0.8 * radius, frame)] if generator.random() < 0.5 else []
        panel = Placed(Cuboid((1.7 * bend, straight, 0.02)), tilt, at(0, straight / 2 + 0.3 * bend), colour=cover)
        return [arc, *posts, *(middle or [panel])]
    if kind == "panel":
        gap = generator.choice([0.0, generator.uniform(0.05, 0.5)]) * rise
        tall = rise - gap
        rounding = generator.choice([0.0, 0.3, 0.49]) * thickness
        parts = [Placed(Cuboid((wide, tall, thickness), rounding), tilt, at(0, gap + tall / 2), colour=cover)]
        if gap > 0:
            spread = wide * generator.choice([0.0, 0.35, 0.48])
            sides = (0,) if spread == 0 else (-1, 1)
            parts += [_bar(at(side * spread, 0), at(side * spread, gap + 0.05), radius, frame) for side in sides]
        return parts
    posts = [_bar(at(side * wide / 2, 0), at(side * wide / 2, rise), 1.3 * radius, frame) for side in (-1, 1)]
    rail = _bar(at(-wide / 2, rise), at(wide / 2, rise), 1.5 * radius, frame)
    if kind == "slats":
        places = np.linspace(-wide / 2, wide / 2, int(generator.integers(4, 9)))[1:-1]
        return [*posts, rail, *[_bar(at(place, 0), at(place, rise), 0.8 * radius, frame) for place in places]]
    if kind == "rungs":
        levels = np.linspace(0.2, 0.95, int(generator.integers(2, 5))) * rise
        tall = generator.uniform(0.02, 0.12)
        return [*posts, *[Placed(Cuboid((wide, tall, 0.02)), tilt, at(0, level), colour=frame) for level in levels]]
    low = 0.25 * rise
    return [
        *posts,
        rail,
        _bar(at(-wide / 2, low), at(wide / 2, rise), radius, frame),
        _bar(at(wide / 2, low), at(-wide / 2, rise), radius, frame),
    ]


def _shell(
    generator: Generator,
    wide: float,
    rise: float,
    thickness: float,
    at: Callable[..., Array],
    tilt: Array,
    colour: Colour,
) -> list[Placed]:
    """Return a back that is bent around the sitter, of upright panels along an arc."""
    opening = generator.uniform(0.4, 1.5)  # half of the angle
    radius = wide / 2 / math.sin(min(opening, math.pi / 2))
    turns = np.linspace(-opening, opening, 7)
    breadth = 1.15 * radius * (turns[1] - turns[0])
    parts = []
    for turn in turns:
        tall = rise * (1 - 0.27 * (turn / opening) ** 2)
        place = at(radius * math.sin(turn), tall / 2, radius * (1 - math.cos(turn)))
        turned = tilt @ rotation((0, 1, 0), -turn)
        parts.append(Placed(Cuboid((breadth, tall, thickness), 0.3 * thickness), turned, place, colour=colour))
    return parts


def _arms(generator: Generator, width: float, depth: float, height: float, rise: float, colour: Colour) -> list[Placed]:
    """Return two arm rests."""
    level = height + generator.uniform(0.35, 0.6) * min(rise, 0.5)
    radius, x, back = generator.uniform(0.01, 0.03), width / 2, -depth / 2
    front = depth * generator.uniform(0.0, 0.5)
    parts = []
    for side in (-x, x):
        rest, post = np.array((side, level, front)), np.array((side, height - 0.03, front))
        parts += [_bar(np.array((side, level, back)), rest, radius, colour), _bar(rest, post, radius, colour)]
    return parts


def _armchair(generator: Generator) -> list[Placed]:
    """Return an upholstered armchair."""
    width, depth = generator.uniform(0.5, 0.75), generator.uniform(0.5, 0.7)
    height, rise = generator.uniform(0.3, 0.45), generator.uniform(0.25, 0.6)
    thick, arm = generator.uniform(0.1, 0.22), generator.uniform(0.1, 0.28)
    cover, frame = _any_colour(generator), _pick(generator, _WOODS)
    lift = generator.choice([0.0, generator.uniform(0.04, 0.2)])
    soft = generator.uniform(0.1, 0.45)
    parts = [_cushion((width, height - lift, depth), (0, lift + (height - lift) / 2, 0), 0.1, cover)]
    tall = height - lift + rise
    parts.append(_cushion((width + thick, tall, thick), (0, lift + tall / 2, -depth / 2), soft, cover))
    top = height - lift + arm
    for side in (-1, 1):
        centre = (side * (width / 2 + thick / 4), lift + top / 2, 0)
        parts.append(_cushion((thick, top, depth), centre, soft, cover))
        if generator.random() < 0.3:  # a rolled arm
            roll = _bar(
                np.array((centre[0], lift + top, -depth / 2)),
                np.array((centre[0], lift + top, depth / 2)),
                0.6 * thick,
                cover,
            )
            parts.append(roll)
    if lift > 0:
        parts += [
            _bar(
                np.array((sx * width / 2, lift, sz * depth / 2.3)),
                np.array((sx * width / 2, 0, sz * depth / 2.3)),
                0.02,
                frame,
            )
            for sx in (-1, 1)
            for sz in (-1, 1)
        ]
    return parts


def _car_body(
    generator: Generator, length: float, width: float, floor: float, top: float, lowest: float, paint: Colour
) -> Placed:
    """Return the body below the windows, whose ends lean and whose bonnet falls towards the front, at most to ``lowest``."""
    front, back = length / 2, -length / 2
    fall = generator.uniform(0.0, 1.0) * min(0.35 * (top - floor), top - lowest)
    lean = generator.uniform(0.02, 0.12)
    belt = front - generator.uniform(0.2, 0.4) * length  # where the bonnet begins
    profile = ((floor, back + lean), (floor, front - lean), (top - fall, front), (top, belt), (top, back))
    return Placed(Prism(profile, width), np.eye(3), np.zeros(3), colour=paint)


def _car_cabin(
    generator: Generator, kind: str, length: float, width: float, top: float, paint: Colour, glass: Colour
) -> list[Placed]:
    """Return the cabin with windows on all sides, and the walls of the bed of a pickup."""
    low, high = {"saloon": (0.46, 0.56), "hatchback": (0.58, 0.7), "van": (0.75, 0.9), "pickup": (0.3, 0.42)}[kind]
    long = generator.uniform(low, high) * length
    tall = generator.uniform(0.7, 1.1) if kind == "van" else generator.uniform(0.4, 0.62)
    room = length - long
    behind = {"saloon": generator.uniform(0.3, 0.5), "pickup": generator.uniform(0.6, 0.7)}.get(kind, 0.06) * room
    back, front = -length / 2 + behind, -length / 2 + behind + long
    rear_slope = generator.uniform(0.3, 0.8) if kind == "saloon" else generator.uniform(0.02, 0.35)
    slopes = rear_slope * tall, generator.uniform(0.3, 0.9) * tall  # lengths of the rear and the front window along z
    breadth, gap = width * generator.uniform(0.84, 0.95), 0.015

    def between(lower: float, upper: float, beyond: float, wide: float, colour: Colour) -> Placed:
        """Return the slice of the cabin between two shares of its height, longer by ``beyond`` at both ends."""
        profile = tuple(
            (top - _OVERLAP + share * tall, end)
            for share, ends in ((lower, (0, 1)), (upper, (1, 0)))
            for end in [(back + share * slopes[0] - beyond, front - share * slopes[1] + beyond)[side] for side in ends]
        )
        return Placed(Prism(profile, wide), np.eye(3), np.zeros(3), colour=colour)

    sill, lintel = generator.uniform(0.08, 0.2), generator.uniform(0.78, 0.9)
    if kind == "van":
        sill = generator.uniform(0.3, 0.45)
    parts = [between(0, 1, 0.0, breadth, paint), between(sill, lintel, gap, 0.86 * breadth, glass)]
    is_closed = kind == "van" and generator.random() < 0.5  # no windows behind the driver
    parts.append(between(sill, lintel, -0.08 * long, breadth + 2 * gap, glass))
    middle = (back + front + slopes[0] - slopes[1]) / 2
    pillars = [(middle, generator.uniform(0.06, 0.12))]
    if is_closed:
        end = front - slopes[1] - 0.22 * long
        pillars = [((back + end) / 2, end - back)]
    for centre, size in pillars:
        block = (breadth + 4 * gap, (lintel - sill) * tall + 0.02, size)
        parts.append(_block(block, (0, top + (sill + lintel) / 2 * tall, centre), paint))
    if kind == "pickup":
        rise, thick = generator.uniform(0.12, 0.35), 0.07
        bed = back + length / 2 + _OVERLAP
        centre = -length / 2 + bed / 2
        sides = [(side * (width / 2 - thick / 2), top + rise / 2 - _OVERLAP, centre) for side in (-1, 1)]
        parts += [_block((thick, rise, bed), side, paint) for side in sides]
        parts.append(_block((width, rise, thick), (0, top + rise / 2 - _OVERLAP, -length / 2 + thick / 2), paint))
    return parts


def _car_wheels(generator: Generator, length: float, width: float, radius: float, tread: float) -> list[Placed]:
    """Return four wheels with hubs."""
    hub, rim = _pick(generator, _METALS), generator.uniform(0.5, 0.75) * radius
    axles = generator.uniform(0.27, 0.34) * length, -generator.uniform(0.26, 0.34) * length
    across = towards(np.array((1.0, 0.0, 0.0)))
    parts = []
    for side in (-1, 1):
        for axle in axles:
            centre = np.array((side * (width / 2 - tread / 2 + 0.03), radius, axle))
            parts.append(Placed(Cone(radius, radius, tread), across, centre, colour=_TYRE))
            parts.append(Placed(Cone(rim, rim, tread + 0.04), across, centre, colour=hub))
    return parts


def _car_lights(generator: Generator, length: float, width: float, floor: float, top: float) -> list[Placed]:
    """Return two headlights, at positive z, and two tail lights."""
    radius = generator.uniform(0.07, 0.12)
    level = floor + 0.5 * (top - floor)
    x = width / 2 - 1.6 * radius
    is_round = generator.random() < 0.5
    parts = []
    for side in (-x, x):
        front, back = (side, level, length / 2 - 0.05), (side, top - 0.15, -length / 2)
        light = _upright(Sphere(radius), front, _HEADLIGHT)
        parts.append(light if is_round else _block((2.4 * radius, 1.2 * radius, 0.14), front, _HEADLIGHT))
        parts.append(_block((2 * radius, 1.6 * radius, 0.06), back, _TAIL_LIGHT))
    return parts


def _bar(first: Array, second: Array, radius: float, colour: Colour) -> Placed:
    """Return a round bar between two points."""
    along = np.asarray(second) - np.asarray(first)
    capsule = Capsule(float(np.linalg.norm(along)), radius)
    return Placed(capsule, towards(along), (np.asarray(first) + np.asarray(second)) / 2, colour=colour)


def _beam(first: Array, second: Array, radius: float, colour: Colour) -> Placed:
    """Return a square bar between two points."""
    along = np.asarray(second) - np.asarray(first)
    box = Cuboid((2 * radius, float(np.linalg.norm(along)), 2 * radius))
    return Placed(box, towards(along), (np.asarray(first) + np.asarray(second)) / 2, colour=colour)


def _block(size: tuple[float, float, float], centre: tuple[float, float, float], colour: Colour) -> Placed:
    """Return a box with its axes along those of the solid."""
    return Placed(Cuboid(size), np.eye(3), np.asarray(centre, dtype=float), colour=colour)


def _cushion(
    size: tuple[float, float, float], centre: tuple[float, float, float], soft: float, colour: Colour
) -> Placed:
    """Return a box whose edges are rounded by a share of its smallest side."""
    return Placed(Cuboid(size, soft * min(size)), np.eye(3), np.asarray(centre, dtype=float), colour=colour)


def _upright(part: Part, centre: object, colour: Colour) -> Placed:
    """Return a part without rotation."""
    return Placed(part, np.eye(3), np.asarray(centre, dtype=float), colour=colour)


def _colours(generator: Generator) -> tuple[Colour, Colour]:
    """Return the colours of frame and cover."""
    frame = _pick(generator, _WOODS if generator.random() < 0.6 else _METALS)
    return frame, frame if generator.random() < 0.4 else _any_colour(generator)


def _pick(generator: Generator, colours: tuple[Colour, ...]) -> Colour:
    """Return one of some colours."""
    return colours[generator.integers(len(colours))]


def _any_colour(generator: Generator) -> Colour:
    """Return a random colour that is neither very dark nor very bright."""
    red, green, blue = generator.uniform(0.15, 0.9, 3)
    return float(red), float(green), float(blue)
