"""How ways and what rises above the ground are painted; see `painters` for the land and the table of all."""

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import shapely

from ucore.canvas import (
    CAR_COLOURS,
    INK,
    WHITE,
    Canvas,
    box_corners,
    boxes,
    draw_boxes,
    draw_crown,
    draw_rows,
    grid_inside,
    inner_box,
    long_axis,
    mixed,
)
from ucore.kinds import KINDS, Feature

# --- ways -------------------------------------------------------------------------------------------------------


def kerb(canvas: Canvas, feature: Feature, _: int) -> None:
    """Pavement or verge beside a way, below the asphalt of all of them."""
    beside = {"street": 2.2, "road": 2.6, "motorway": 3.5, "roundabout": 2.2}.get(feature.kind, 0.0)
    if beside:
        tone = canvas.colours["grass"] if feature.kind == "motorway" else mixed(canvas.colours["paved"], INK, 0.08)
        canvas.fill(feature.inset(-beside), tone, "asphalt", 0, 0.0)


def asphalt(canvas: Canvas, feature: Feature, label: int) -> None:
    """A way: asphalt, sand or soil by its kind; main roads and motorways with lines and vehicles."""
    tone = {"track": canvas.colours["track"], "footway": canvas.colours["sand"]}.get(feature.kind)
    tone = canvas.colours["asphalt"] if tone is None else tone
    if feature.kind == "road":
        tone = mixed(tone, INK, 0.12)
    canvas.fill(feature.rings, tone, "soil" if feature.kind == "track" else "asphalt", label)
    if feature.kind not in ("road", "motorway"):
        return
    if feature.kind == "motorway":
        for ring in feature.inset(0.9):
            canvas.line(ring, WHITE, 0.3, True)
    tone = canvas.colours["grass"] if feature.kind == "motorway" else WHITE
    for ring in feature.inset(KINDS[feature.kind].width * canvas.city.style.street_scale / 2 - 0.7):
        canvas.line(ring, tone, 0.4, True)
    _traffic(canvas, feature)


def _traffic(canvas: Canvas, feature: Feature) -> None:
    """A few vehicles; a place's cars are always the same ones."""
    points, random, _, _ = grid_inside(canvas, feature, (9.0, 4.5), 2.2, salt=1)
    some = random < (0.10 if feature.kind == "motorway" else 0.06)
    if some.any():
        outline: Any = feature.geometry.exterior
        tones = CAR_COLOURS[(random[some] * 8191).astype(int) % len(CAR_COLOURS)]
        nearest = shapely.line_locate_point(outline, shapely.points(points[some]))
        ahead = shapely.get_coordinates(shapely.line_interpolate_point(outline, nearest + 2))
        here = shapely.get_coordinates(shapely.line_interpolate_point(outline, nearest))
        for place, tone, (dx, dy) in zip(points[some], tones, ahead - here, strict=True):
            draw_boxes(canvas, boxes(place[None], 4.6, 1.9, math.atan2(dy, dx)), tone, 1.5)


def roundabout(canvas: Canvas, feature: Feature, label: int) -> None:
    """A ring of asphalt around a green with a tree."""
    canvas.fill(feature.rings, mixed(canvas.colours["asphalt"], INK, 0.12), "asphalt", label)
    middle = feature.rings[0][:-1].mean(axis=0)
    for share, tone in ((0.62, WHITE), (0.58, canvas.colours["grass"])):
        canvas.fill([middle + (feature.rings[0] - middle) * share], tone, "grass", label)
    draw_crown(canvas, middle[0], middle[1], canvas.city.style.crown, np.array(canvas.colours["forest"]) * 1.2, 6.0)


def rails(canvas: Canvas, feature: Feature, label: int) -> None:
    """A railway: ballast and rails."""
    canvas.fill(feature.rings, canvas.colours["ballast"], "soil", label)
    for inset in (1.3, 2.6):
        for ring in feature.inset(inset):
            canvas.line(ring, (84, 74, 68), 0.5, True)


def deck(canvas: Canvas, feature: Feature, label: int) -> None:
    """A bridge: a pale deck that casts a shadow."""
    canvas.fill(feature.rings, (196, 192, 184), "plain", label, feature.height or 5.0)


# --- raised -----------------------------------------------------------------------------------------------------


def building(canvas: Canvas, feature: Feature, label: int) -> None:
    """A roof: flat with parapet and plant, or sloped with facets lit by the sun."""
    colour = np.array(feature.colour or (166, 160, 154), float)
    canvas.fill(feature.rings, colour, "roof", label, feature.height)
    if feature.roof != "flat":
        facets = list(_facets(feature))
        for shape, normal in facets:
            light = 1 + 0.24 * float(np.dot(normal, (canvas.sun[0], -canvas.sun[1])))
            canvas.fill([shape], np.clip(colour * light, 0, 255), "roof")
        if facets:
            return
    for ring in feature.rings:
        canvas.line(ring, mixed(colour, WHITE, 0.35), 0.5, True)
        canvas.line(ring + np.array([0.35, -0.35]), mixed(colour, INK, 0.25), 0.25, True)
    if feature.geometry.area > 450 and feature.kind != "stadium":
        points, random, _, angle = grid_inside(canvas, feature, (11.0, 8.0), 3.0)
        some = random > 0.74
        draw_boxes(
            canvas, boxes(points[some], 2.8, 2.0, angle), mixed(colour, (206, 206, 206), 0.5), feature.height + 1.4
        )
    if feature.kind == "stadium":
        for row in (2.5, 5.0, 7.5, 10.0):
            for ring in feature.inset(row):
                canvas.line(ring, colour * 0.8, 0.5, True)


def _facets(feature: Feature) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The slopes of a gable or hip roof on a rectangular plan: corners and the horizontal way each faces."""
    middle, a, b, long, short = inner_box(feature)
    if feature.geometry.area < 0.82 * 4 * long * short:
        return
    reach = long if feature.roof == "gable" else max(long - short, 0.0)
    ridge = [middle - a * reach, middle + a * reach]
    corners = box_corners(middle, a, b, long, short)
    yield np.array([corners[0], corners[1], ridge[1], ridge[0]]), -b
    yield np.array([corners[3], corners[2], ridge[1], ridge[0]]), b
    if feature.roof == "hip":
        yield np.array([corners[1], corners[2], ridge[1]]), a
        yield np.array([corners[0], corners[3], ridge[0]]), -a


def glass(canvas: Canvas, feature: Feature, label: int) -> None:
    """A greenhouse: pale glass in bands."""
    canvas.fill(feature.rings, (206, 216, 214), "plain", label, feature.height or 4.0)
    draw_rows(canvas, Feature("greenhouse", feature.geometry, angle=long_axis(feature)), (5.0, 0.1))


def tank(canvas: Canvas, feature: Feature, label: int) -> None:
    """A round tank or chimney: its rim, its lid, and a bright spot towards the sun."""
    colour = np.array(feature.colour or (222, 222, 218), float)
    middle = feature.rings[0][:-1].mean(axis=0)
    canvas.fill(feature.rings, colour * 0.86, "plain", label, feature.height)
    canvas.fill([middle + (feature.rings[0] - middle) * 0.93], colour, "plain")
    sun = np.array([canvas.sun[0], -canvas.sun[1]])
    canvas.fill([middle + sun * 0.5 + (feature.rings[0] - middle) * 0.25], np.minimum(colour * 1.06, 255), "plain")


def _jib(canvas: Canvas, feature: Feature, label: int, reach: tuple[float, ...], colour: tuple, width: float,
         tall: float) -> None:  # fmt: skip
    """Thin arms high above the ground around a mast; only the mast stands on it and casts a shadow from there."""
    middle = feature.rings[0][:-1].mean(axis=0)
    turn = (feature.seed % 628) / 100 if feature.angle is None else feature.angle
    for number, length in enumerate(reach):
        angle = turn + number * 2 * math.pi / len(reach)
        end = middle + length * np.array([math.cos(angle), math.sin(angle)])
        arm = boxes(((middle + end) / 2)[None], length, width, angle)
        draw_boxes(canvas, arm, colour)
        cv2.fillConvexPoly(canvas.instances, canvas.pixels(arm)[0], label, cv2.LINE_8, 4)
    canvas.fill(feature.rings, colour, "plain", label, tall)


def crane(canvas: Canvas, feature: Feature, label: int) -> None:
    """A tower crane: the long arm and the short one."""
    _jib(canvas, feature, label, (38.0, 13.0), (228, 180, 40), 1.5, 16.0)


def turbine(canvas: Canvas, feature: Feature, label: int) -> None:
    """A wind turbine with three blades."""
    _jib(canvas, feature, label, (34.0, 34.0, 34.0), (240, 240, 240), 2.0, 20.0)
