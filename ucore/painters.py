"""How each kind of feature is painted: a function (canvas, feature, label) for every name in `Kind.paint`.

Decorations (cars, graves, furrows, court lines) are placed by position alone, so that a feature looks the same in every
tile that shows it, whether it was made up or comes from OpenStreetMap.
"""

import math
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import shapely

from ucore.kinds import KINDS, Feature
from ucore.render import Canvas
from ucore.textures import canopy, crown, noise, window

Painter = Callable[[Canvas, Feature, int], None]
WHITE, INK = (232, 232, 228), (60, 60, 62)
CAR_COLOURS = np.array([(226, 226, 226), (50, 52, 56), (150, 152, 156), (170, 44, 40), (52, 80, 134), (196, 190, 180)])


def _plain(colour: str, material: str) -> Painter:
    def paint(canvas: Canvas, feature: Feature, label: int) -> None:
        canvas.fill(feature.rings, feature.colour or canvas.colours[colour], material, label)

    return paint


def _mixed(tone: tuple | np.ndarray, other: tuple | np.ndarray, share: float) -> np.ndarray:
    return np.asarray(tone) * (1 - share) + np.asarray(other) * share


def _random(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Reproducible numbers in 0..1 of integer positions, whichever part of a grid is asked for."""
    mixed = u.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ v.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= np.uint64(seed) * np.uint64(0x165667B19E3779F9)
    for shift in (29, 32):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def _grid(canvas: Canvas, feature: Feature, step: tuple[float, float], inset: float = 0.0,
          salt: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:  # fmt: skip
    """Grid points inside a polygon and near the canvas: points (n, 2), random (n,), column numbers (n,), angle."""
    shape = feature.geometry.buffer(-inset) if inset else feature.geometry
    half = canvas.size * canvas.camera.gsd_m / 2 + 8
    middle = np.array([canvas.west, canvas.north]) + (half - 8, 8 - half)
    seen = shapely.box(*(middle - half), *(middle + half)).intersection(shape.envelope)
    empty = np.empty((0, 2)), np.empty(0), np.empty(0, np.int64), 0.0
    if shape.is_empty or seen.is_empty:
        return empty
    angle = feature.angle or long_axis(feature)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    anchor = feature.rings[0][0]
    corners = (shapely.get_coordinates(seen) - anchor) @ turn
    low, high = np.floor(corners.min(axis=0) / step), np.ceil(corners.max(axis=0) / step)
    u, v = (g.ravel() for g in np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij"))
    points = np.stack([u * step[0], v * step[1]], axis=1) @ turn.T + anchor
    inside = shapely.contains_xy(shape, points[:, 0], points[:, 1])
    u, v = u[inside].astype(np.int64), v[inside].astype(np.int64)
    return points[inside], _random(u, v, feature.seed + salt), u, angle


def _boxes(points: np.ndarray, length: float | np.ndarray, width: float | np.ndarray, angle: float) -> np.ndarray:
    """Corners (n, 4, 2) of rectangles around `points`, `length` along `angle`."""
    u, v = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    along = np.broadcast_to(length, len(points))[:, None] / 2 * u
    across = np.broadcast_to(width, len(points))[:, None] / 2 * v
    return np.stack([points - along - across, points + along - across, points + along + across,
                     points - along + across], axis=1)  # fmt: skip


def _draw(canvas: Canvas, boxes: np.ndarray, colours: np.ndarray | tuple, height: float | None = None) -> None:
    tones = np.broadcast_to(colours, (len(boxes), 3)).astype(np.float64)
    for shape, tone in zip(canvas.pixels(boxes), tones.tolist(), strict=True):
        cv2.fillConvexPoly(canvas.image, shape, tone, cv2.LINE_AA, 4)
        if height is not None:
            cv2.fillConvexPoly(canvas.height, shape, height, cv2.LINE_8, 4)


def long_axis(feature: Feature) -> float:
    """Direction of a polygon's longer side, radians."""
    corners = shapely.get_coordinates(feature.geometry.minimum_rotated_rectangle)[:3]
    if len(corners) < 3:
        return 0.0
    sides = np.diff(corners, axis=0)
    x, y = sides[np.hypot(sides[:, 0], sides[:, 1]).argmax()]
    return math.atan2(y, x)


# --- land -------------------------------------------------------------------------------------------------------


def garden(canvas: Canvas, feature: Feature, label: int) -> None:
    colour = _mixed(canvas.colours["grass"], canvas.colours["paved"], 0.22)
    canvas.fill(feature.rings, colour, "grass", label)


def furrows(canvas: Canvas, feature: Feature, label: int) -> None:
    """A field: its crop's colour in rows, with the tramlines of tractors."""
    canvas.fill(feature.rings, feature.colour or canvas.city.style.crops[0], "field", label)
    _rows(canvas, feature, (3.2 + feature.seed % 5, 0.07), (21.0, 0.05))


def _rows(canvas: Canvas, feature: Feature, *waves: tuple[float, float]) -> None:
    """Brightness in rows along the feature: (metres apart, share of brightness) each."""
    mask, (rows, columns) = canvas.mask(feature.rings)
    if not mask.any():
        return
    angle = feature.angle or long_axis(feature)
    x, y = canvas.world(rows, columns)
    across = y * math.cos(angle) - x * math.sin(angle)
    tone = sum(amount * np.sin(across * (2 * math.pi / apart)) for apart, amount in waves)
    part = canvas.image[rows, columns]
    part[mask] = np.clip(part[mask] * (1 + tone[mask][:, None]), 0, 255)


def woods(canvas: Canvas, feature: Feature, label: int) -> None:
    """Closed canopy, its edge frayed by noise."""
    mask, (rows, columns) = canvas.mask(feature.rings)
    if not mask.any():
        return
    style = canvas.city.style
    picture, height = canopy(style.colours["forest"], round(style.crown * canvas.scale, 1), style.conifers,
                             tuple(round(part, 2) for part in canvas.sun), 7)  # fmt: skip
    place = (canvas.origin[0] + columns.start, canvas.origin[1] + rows.start, mask.shape[1], mask.shape[0])
    part = canvas.image[rows, columns]
    part[mask] = window(picture, *place)[mask]
    canvas.height[rows, columns][mask] = KINDS["forest"].height * (0.5 + 0.5 * window(height, *place)[mask])
    canvas.material[rows, columns][mask] = 7
    canvas.instances[rows, columns][mask] = label


def planted(canvas: Canvas, feature: Feature, label: int) -> None:
    """Trees in rows on bare or grassy soil: orchards and olive groves."""
    olives = feature.kind == "olive_grove"
    soil = canvas.colours["soil"] if olives else canvas.colours["grass"]
    canvas.fill(feature.rings, soil, "soil", label)
    points, random, _, _ = _grid(canvas, feature, (8.5, 8.5) if olives else (5.5, 4.6), 2.0)
    tone = np.array((104, 108, 74)) if olives else np.array(canvas.colours["forest"]) * 1.25
    for (x, y), share in zip(points, random, strict=True):
        if share > 0.06:
            _crown(canvas, x, y, (1.5 if not olives else 2.1) * (0.75 + 0.5 * share), tone * (0.85 + 0.3 * share), 3.5)


def _crown(canvas: Canvas, x: float, y: float, radius: float, colour: np.ndarray, tall: float) -> None:
    at = ((x - canvas.west) * canvas.scale, (canvas.north - y) * canvas.scale)
    crown(canvas.image, canvas.height, at, radius * canvas.scale, colour, tall, canvas.sun)


def tree(canvas: Canvas, feature: Feature, label: int) -> None:
    style, (x, y) = canvas.city.style, feature.rings[0][0]
    share = (feature.seed % 1000) / 1000
    dark = share < style.conifers
    colour = np.array(style.colours["forest"]) * (0.9 if dark else 1.15 + 0.25 * share)
    radius = max(feature.radius or style.crown, 1.0) * (0.8 if dark else 1.0)
    _crown(canvas, x, y, radius, colour, feature.height or 8.0)
    at = (round((x - canvas.west) * canvas.scale * 16), round((canvas.north - y) * canvas.scale * 16))
    cv2.circle(canvas.instances, at, max(8, round(radius * canvas.scale * 16)), label, -1, cv2.LINE_8, 4)


def vines(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, _mixed(canvas.colours["soil"], canvas.colours["forest"], 0.35), "soil", label)
    _rows(canvas, feature, (2.6, 0.3), (39.0, 0.06))


def pit(canvas: Canvas, feature: Feature, label: int) -> None:
    """A quarry: terraces, one below the other."""
    shape, colour = feature.geometry, _mixed(canvas.colours["sand"], (196, 186, 170), 0.5)
    canvas.fill(feature.rings, colour, "soil", label)
    for number, inset in enumerate((9, 18, 29, 42), start=1):
        inner = shape.buffer(-inset)
        for part in getattr(inner, "geoms", [inner]):
            if part.geom_type == "Polygon" and not part.is_empty:
                ring = shapely.get_coordinates(part.exterior)
                canvas.fill([ring], _mixed(colour, (120, 108, 92), 0.13 * number), "soil")
                canvas.line(ring, _mixed(colour, INK, 0.35), 1.2, True)


def open_water(canvas: Canvas, feature: Feature, label: int) -> None:
    colour = np.array(canvas.colours["water"], float)
    canvas.fill(feature.rings, colour, "water", label, 0.0)
    for ring in feature.rings:
        canvas.line(ring, _mixed(colour, canvas.colours["sand"], 0.45), 1.6, True)
    mask, (rows, columns) = canvas.mask(feature.rings)
    if mask.any():
        place = (canvas.origin[0] + columns.start, canvas.origin[1] + rows.start, mask.shape[1], mask.shape[0])
        depth = window(noise(5, 1.6), *place)
        part = canvas.image[rows, columns]
        part[mask] = np.clip(part[mask] * (1 + 0.07 * depth[mask][:, None]), 0, 255)


# --- areas ------------------------------------------------------------------------------------------------------


def paved(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, canvas.colours["paved"], "asphalt", label)
    if feature.kind == "square":
        _rows(canvas, feature, (6.0, 0.05))


def yard(canvas: Canvas, feature: Feature, label: int) -> None:
    """Paved ground of a works or a farm, with lorries or heaps."""
    share = 0.5 if feature.kind == "farmyard" else 0.15
    canvas.fill(feature.rings, _mixed(canvas.colours["asphalt"], canvas.colours["soil"], share), "asphalt", label)
    points, random, _, angle = _grid(canvas, feature, (21, 15), 6)
    some = random > 0.72
    tones = CAR_COLOURS[(random[some] * 997).astype(int) % len(CAR_COLOURS)]
    _draw(canvas, _boxes(points[some], 10.5, 2.6, angle), tones, 3.4)


def schoolyard(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, _mixed(canvas.colours["grass"], canvas.colours["paved"], 0.4), "grass", label)


def graves(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, canvas.colours["grass"], "grass", label)
    points, random, u, angle = _grid(canvas, feature, (3.4, 2.0), 3)
    some = (random > 0.12) & (u % 9 != 0)
    tones = np.array([(176, 174, 170), (120, 118, 116), (206, 200, 190)])[(random[some] * 991).astype(int) % 3]
    _draw(canvas, _boxes(points[some], 1.9, 0.9, angle), tones, 0.7)


def plots(canvas: Canvas, feature: Feature, label: int) -> None:
    """Allotments: small gardens, each another green, most with a hut."""
    canvas.fill(feature.rings, _mixed(canvas.colours["grass"], canvas.colours["soil"], 0.5), "grass", label)
    points, random, _, angle = _grid(canvas, feature, (17, 12), 5)
    greens = np.array([canvas.colours["grass"], canvas.colours["forest"], canvas.colours["soil"], (150, 160, 84)])
    _draw(canvas, _boxes(points, 15, 10.4, angle), greens[(random * 983).astype(int) % 4])
    huts = random > 0.25
    roofs = np.array([(150, 84, 66), (96, 92, 90), (196, 192, 186)])[(random[huts] * 977).astype(int) % 3]
    _draw(canvas, _boxes(points[huts] + 2.4, 4.4, 3.4, angle), roofs, 2.8)


def site_works(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, _mixed(canvas.colours["soil"], (206, 190, 160), 0.4), "soil", label)
    points, random, _, angle = _grid(canvas, feature, (13, 9), 5)
    some = random > 0.7
    tones = np.array([(214, 168, 52), (186, 96, 52), (86, 110, 152), (150, 146, 140)])
    _draw(canvas, _boxes(points[some], 6.5, 2.6, angle), tones[(random[some] * 971).astype(int) % 4], 2.6)
    for ring in feature.rings[:1]:
        canvas.line(ring, (120, 112, 100), 1.0, True)


def panels(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, _mixed(canvas.colours["grass"], canvas.colours["soil"], 0.25), "grass", label)
    points, random, u, angle = _grid(canvas, feature, (16.5, 7.0), 4)
    _draw(canvas, _boxes(points, 15.8, 3.9, angle), np.array((38, 48, 84)) * (0.9 + 0.2 * random[:, None]), 2.2)


def cars(canvas: Canvas, feature: Feature, label: int) -> None:
    """A car park: marked bays, most of them taken, lanes between."""
    canvas.fill(feature.rings, canvas.colours["asphalt"], "asphalt", label)
    points, random, u, angle = _grid(canvas, feature, (8.2, 2.7), 2.4)
    bays = u % 2 == 0
    points, random = points[bays], random[bays]
    marks = points + np.array([-math.sin(angle), math.cos(angle)]) * 1.35
    _draw(canvas, _boxes(marks, 4.8, 0.22, angle), WHITE)
    full = random < 0.35 + (feature.seed % 50) / 100
    tones = CAR_COLOURS[(random[full] * 967).astype(int) % len(CAR_COLOURS)]
    _draw(canvas, _boxes(points[full], 4.4, 1.9, angle), tones, 1.5)
    _draw(canvas, _boxes(points[full], 2.0, 1.6, angle), tones * 0.55)


def _inner(feature: Feature, share: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Middle, both axes and both half lengths of the rectangle around a polygon, scaled by `share`."""
    corners = shapely.get_coordinates(feature.geometry.minimum_rotated_rectangle)
    a, b = corners[1] - corners[0], corners[2] - corners[1]
    a, b = (a, b) if np.hypot(*a) >= np.hypot(*b) else (b, a)
    long, short = float(np.hypot(*a)), float(np.hypot(*b))
    return corners[:4].mean(axis=0), a / max(long, 1e-6), b / max(short, 1e-6), long / 2 * share, short / 2 * share


def _frame(middle: np.ndarray, a: np.ndarray, b: np.ndarray, long: float, short: float) -> np.ndarray:
    return np.array([middle - a * long - b * short, middle + a * long - b * short, middle + a * long + b * short,
                     middle - a * long + b * short])  # fmt: skip


def football(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, (92, 136, 68), "grass", label)
    middle, a, b, long, short = _inner(feature, 0.93)
    _rows(canvas, Feature("pitch", feature.geometry, angle=math.atan2(b[1], b[0])), (15.0, 0.05))
    canvas.line(_frame(middle, a, b, long, short), WHITE, 0.35, True)
    canvas.line(np.array([middle - b * short, middle + b * short]), WHITE, 0.35)
    turns = np.linspace(0, 2 * math.pi, 25)[:, None]
    canvas.line(middle + min(9.2, short / 2) * (np.cos(turns) * a + np.sin(turns) * b), WHITE, 0.35)
    for end in (-1, 1):
        box = _frame(middle + a * long * 0.84 * end, a, b, long * 0.16, short * 0.55)
        canvas.line(box, WHITE, 0.35, True)


def court(canvas: Canvas, feature: Feature, label: int) -> None:
    colour = np.array(feature.colour or ((172, 92, 66) if feature.kind == "tennis_court" else (86, 122, 150)))
    canvas.fill(feature.rings, colour * 0.82, "plain", label)
    middle, a, b, long, short = _inner(feature, 0.8)
    canvas.fill([_frame(middle, a, b, long, short * 0.9)], colour, "plain")
    canvas.line(_frame(middle, a, b, long, short * 0.9), WHITE, 0.3, True)
    canvas.line(np.array([middle - b * short, middle + b * short]), WHITE, 0.35)
    for side in (-0.6, 0.6):
        canvas.line(np.array([middle - a * long + b * short * side, middle + a * long + b * short * side]), WHITE, 0.25)


def lanes(canvas: Canvas, feature: Feature, label: int) -> None:
    """A running track: red lanes around a green."""
    canvas.fill(feature.rings, (178, 88, 68), "plain", label)
    for inset, tone in ((1.3, WHITE), (2.6, WHITE), (3.9, WHITE)):
        ring = feature.geometry.buffer(-inset)
        if ring.geom_type == "Polygon" and not ring.is_empty:
            canvas.line(shapely.get_coordinates(ring.exterior), _mixed((178, 88, 68), tone, 0.55), 0.2, True)
    green = feature.geometry.buffer(-7.5)
    if green.geom_type == "Polygon" and not green.is_empty:
        canvas.fill([shapely.get_coordinates(green.exterior)], canvas.colours["grass"], "grass")


def play(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, canvas.colours["sand"], "soil", label)
    points, random, _, angle = _grid(canvas, feature, (5, 4), 1.5)
    tones = np.array([(206, 60, 50), (60, 106, 190), (226, 186, 50)])[(random * 953).astype(int) % 3]
    _draw(canvas, _boxes(points, 2.2, 1.6, angle), tones, 1.6)


def pool(canvas: Canvas, feature: Feature, label: int) -> None:
    outer = feature.geometry.buffer(1.1, join_style="mitre")
    canvas.fill([shapely.get_coordinates(outer.exterior)], (214, 206, 192), "plain")
    canvas.fill(feature.rings, (86, 186, 208), "water", label)


def clarifier(canvas: Canvas, feature: Feature, label: int) -> None:
    middle, radius = feature.rings[0][:-1].mean(axis=0), math.sqrt(feature.geometry.area / math.pi)
    canvas.fill(feature.rings, (170, 168, 162), "plain", label, 1.5)
    for share, tone in ((0.9, (74, 82, 64)), (0.45, (92, 100, 78)), (0.12, (170, 168, 162))):
        canvas.fill([middle + (feature.rings[0] - middle) * share], tone, "water")
    turn = (feature.seed % 628) / 100
    canvas.line(np.array([middle, middle + radius * np.array([math.cos(turn), math.sin(turn)])]), WHITE, 0.8)


def jetty(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, (168, 156, 138), "plain", label, 1.2)


def boat(canvas: Canvas, feature: Feature, label: int) -> None:
    middle, a, b, long, short = _inner(feature)
    hull = np.array([middle - a * long - b * short, middle + a * long * 0.4 - b * short, middle + a * long,
                     middle + a * long * 0.4 + b * short, middle - a * long + b * short])  # fmt: skip
    canvas.fill([hull], WHITE, "plain", label, 1.6)
    canvas.fill([middle + (hull - middle) * 0.55], (104, 122, 146), "plain")


# --- ways -------------------------------------------------------------------------------------------------------


def kerb(canvas: Canvas, feature: Feature, _: int) -> None:
    """Pavement or verge beside a way, below the asphalt of all of them."""
    beside = {"street": 2.2, "road": 2.6, "motorway": 3.5, "roundabout": 2.2}.get(feature.kind, 0.0)
    if beside:
        tone = canvas.colours["grass"] if feature.kind == "motorway" else _mixed(canvas.colours["paved"], INK, 0.08)
        edge = feature.geometry.buffer(beside, quad_segs=2, join_style="mitre")
        rings = [shapely.get_coordinates(ring) for ring in (edge.exterior, *edge.interiors)]
        canvas.fill(rings, tone, "asphalt", 0, 0.0)


def asphalt(canvas: Canvas, feature: Feature, label: int) -> None:
    tone = {"track": canvas.colours["track"], "footway": canvas.colours["sand"]}.get(feature.kind)
    tone = canvas.colours["asphalt"] if tone is None else tone
    if feature.kind == "road":
        tone = _mixed(tone, INK, 0.12)
    canvas.fill(feature.rings, tone, "soil" if feature.kind == "track" else "asphalt", label)
    if feature.kind not in ("road", "motorway"):
        return
    insets = {"road": (), "motorway": (0.9,)}[feature.kind]
    for inset in insets:
        inner = feature.geometry.buffer(-inset)
        for part in getattr(inner, "geoms", [inner]):
            if part.geom_type == "Polygon" and not part.is_empty:
                canvas.line(shapely.get_coordinates(part.exterior), WHITE, 0.3, True)
    middle = feature.geometry.buffer(-(KINDS[feature.kind].width * canvas.city.style.street_scale / 2 - 0.7))
    for part in getattr(middle, "geoms", [middle]):
        if part.geom_type == "Polygon" and not part.is_empty:
            tone = canvas.colours["grass"] if feature.kind == "motorway" else WHITE
            canvas.line(shapely.get_coordinates(part.exterior), tone, 0.4, True)
    _traffic(canvas, feature)


def _traffic(canvas: Canvas, feature: Feature) -> None:
    """A few vehicles; a place's cars are always the same ones."""
    points, random, _, _ = _grid(canvas, feature, (9.0, 4.5), 2.2, salt=1)
    some = random < (0.10 if feature.kind == "motorway" else 0.06)
    if some.any():
        tones = CAR_COLOURS[(random[some] * 8191).astype(int) % len(CAR_COLOURS)]
        nearest = shapely.line_locate_point(feature.geometry.exterior, shapely.points(points[some]))
        ahead = shapely.get_coordinates(shapely.line_interpolate_point(feature.geometry.exterior, nearest + 2))
        here = shapely.get_coordinates(shapely.line_interpolate_point(feature.geometry.exterior, nearest))
        for place, tone, (dx, dy) in zip(points[some], tones, ahead - here, strict=True):
            _draw(canvas, _boxes(place[None], 4.6, 1.9, math.atan2(dy, dx)), tone, 1.5)


def roundabout(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, _mixed(canvas.colours["asphalt"], INK, 0.12), "asphalt", label)
    middle = feature.rings[0][:-1].mean(axis=0)
    for share, tone in ((0.62, WHITE), (0.58, canvas.colours["grass"])):
        canvas.fill([middle + (feature.rings[0] - middle) * share], tone, "grass", label)
    _crown(canvas, *middle, canvas.city.style.crown, np.array(canvas.colours["forest"]) * 1.2, 6.0)


def rails(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, (134, 122, 112), "soil", label)
    for inset, tone in ((1.3, (84, 74, 68)), (2.6, (88, 80, 76))):
        inner = feature.geometry.buffer(-inset)
        for part in getattr(inner, "geoms", [inner]):
            if part.geom_type == "Polygon" and not part.is_empty:
                canvas.line(shapely.get_coordinates(part.exterior), tone, 0.5, True)


def deck(canvas: Canvas, feature: Feature, label: int) -> None:
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
        canvas.line(ring, _mixed(colour, WHITE, 0.35), 0.5, True)
        canvas.line(ring + (0.35, -0.35), _mixed(colour, INK, 0.25), 0.25, True)
    if feature.geometry.area > 180 and feature.kind != "stadium":
        points, random, _, angle = _grid(canvas, feature, (11.0, 8.0), 3.0)
        some = random > 0.74
        _draw(canvas, _boxes(points[some], 2.8, 2.0, angle), _mixed(colour, (206, 206, 206), 0.5), feature.height + 1.4)
    if feature.kind == "stadium":
        for share in (2.5, 5.0, 7.5, 10.0):
            ring = feature.geometry.buffer(-share)
            for part in getattr(ring, "geoms", [ring]):
                if part.geom_type == "Polygon" and not part.is_empty:
                    canvas.line(shapely.get_coordinates(part.exterior), colour * 0.8, 0.5, True)


def _facets(feature: Feature) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The slopes of a gable or hip roof on a rectangular plan: corners and the horizontal way each faces."""
    middle, a, b, long, short = _inner(feature)
    if feature.geometry.area < 0.82 * 4 * long * short:
        return
    reach = long if feature.roof == "gable" else max(long - short, 0.0)
    ridge = [middle - a * reach, middle + a * reach]
    corners = _frame(middle, a, b, long, short)
    yield np.array([corners[0], corners[1], ridge[1], ridge[0]]), -b
    yield np.array([corners[3], corners[2], ridge[1], ridge[0]]), b
    if feature.roof == "hip":
        yield np.array([corners[1], corners[2], ridge[1]]), a
        yield np.array([corners[0], corners[3], ridge[0]]), -a


def glass(canvas: Canvas, feature: Feature, label: int) -> None:
    canvas.fill(feature.rings, (206, 216, 214), "plain", label, feature.height or 4.0)
    _rows(canvas, Feature("greenhouse", feature.geometry, angle=long_axis(feature)), (5.0, 0.1))


def tank(canvas: Canvas, feature: Feature, label: int) -> None:
    colour = np.array(feature.colour or (222, 222, 218), float)
    middle = feature.rings[0][:-1].mean(axis=0)
    canvas.fill(feature.rings, colour * 0.86, "plain", label, feature.height)
    canvas.fill([middle + (feature.rings[0] - middle) * 0.93], colour, "plain")
    sun = np.array([canvas.sun[0], -canvas.sun[1]])
    canvas.fill([middle + sun * 0.5 + (feature.rings[0] - middle) * 0.25], np.minimum(colour * 1.06, 255), "plain")


def _jib(canvas: Canvas, feature: Feature, label: int, reach: tuple[float, ...], colour: tuple, width: float,
         tall: float) -> None:  # fmt: skip
    """Thin arms around a mast, with their shadow."""
    middle = feature.rings[0][:-1].mean(axis=0)
    turn = feature.angle or (feature.seed % 628) / 100
    for number, length in enumerate(reach):
        angle = turn + number * 2 * math.pi / len(reach)
        end = middle + length * np.array([math.cos(angle), math.sin(angle)])
        arm = _boxes(((middle + end) / 2)[None], length, width, angle)
        canvas.fill([arm[0]], colour, "plain", label, tall)
    canvas.fill(feature.rings, colour, "plain", label, tall)


def crane(canvas: Canvas, feature: Feature, label: int) -> None:
    _jib(canvas, feature, label, (38.0, 13.0), (228, 180, 40), 1.5, 16.0)


def turbine(canvas: Canvas, feature: Feature, label: int) -> None:
    _jib(canvas, feature, label, (34.0, 34.0, 34.0), (240, 240, 240), 2.0, 20.0)


PAINTERS: dict[str, Painter] = {
    "garden": garden, "paved": paved, "yard": yard, "field": furrows, "grass": _plain("grass", "grass"),
    "scrub": _plain("scrub", "leaves"), "canopy": woods, "orchard": planted, "vineyard": vines,
    "sand": _plain("sand", "soil"), "quarry": pit, "schoolyard": schoolyard, "cemetery": graves, "allotments": plots,
    "construction": site_works, "solar": panels, "water": open_water, "parking": cars, "running": lanes,
    "pitch": football, "tennis": court, "playground": play, "pool": pool, "clarifier": clarifier, "pier": jetty,
    "boat": boat, "kerb": kerb, "road": asphalt, "roundabout": roundabout, "rail": rails, "bridge": deck,
    "building": building, "greenhouse": glass, "tank": tank, "crane": crane, "turbine": turbine, "tree": tree,
}  # fmt: skip
