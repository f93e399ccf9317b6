"""How each kind of feature is painted: a function (canvas, feature, label) for every name in `Kind.paint`.

Decorations (cars, graves, furrows, court lines) are placed by position alone, so that a feature looks the same in every
tile that shows it, whether it was made up or comes from OpenStreetMap.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from ucore import painters_built as built
from ucore.canvas import (
    CAR_COLOURS,
    INK,
    MATERIAL_ID,
    WHITE,
    Canvas,
    box_corners,
    boxes,
    draw_boxes,
    draw_crown,
    draw_rows,
    grid_inside,
    inner_box,
    mixed,
)
from ucore.kinds import KINDS, Feature
from ucore.textures import canopy, noise, window

Painter = Callable[[Canvas, Feature, int], None]


def _plain(colour: str, material: str) -> Painter:
    def paint(canvas: Canvas, feature: Feature, label: int) -> None:
        canvas.fill(feature.rings, feature.colour or canvas.colours[colour], material, label)

    return paint


# --- land -------------------------------------------------------------------------------------------------------


def garden(canvas: Canvas, feature: Feature, label: int) -> None:
    """Residential ground: grass with a share of paving."""
    colour = mixed(canvas.colours["grass"], canvas.colours["paved"], 0.22)
    canvas.fill(feature.rings, colour, "grass", label)


def furrows(canvas: Canvas, feature: Feature, label: int) -> None:
    """A field: its crop's colour in rows, with the tramlines of tractors."""
    canvas.fill(feature.rings, feature.colour or canvas.city.style.crops[0], "field", label)
    draw_rows(canvas, feature, (3.2 + feature.seed % 5, 0.07), (21.0, 0.05))


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
    canvas.material[rows, columns][mask] = MATERIAL_ID["leaves"]
    canvas.instances[rows, columns][mask] = label


def planted(canvas: Canvas, feature: Feature, label: int) -> None:
    """Trees in rows on bare or grassy soil: orchards and olive groves."""
    olives = feature.kind == "olive_grove"
    soil = canvas.colours["soil"] if olives else canvas.colours["grass"]
    canvas.fill(feature.rings, soil, "soil", label)
    points, random, _, _ = grid_inside(canvas, feature, (8.5, 8.5) if olives else (5.5, 4.6), 2.0)
    tone = np.array((104, 108, 74)) if olives else np.array(canvas.colours["forest"]) * 1.25
    for (x, y), share in zip(points, random, strict=True):
        if share > 0.06:
            draw_crown(
                canvas, x, y, (1.5 if not olives else 2.1) * (0.75 + 0.5 * share), tone * (0.85 + 0.3 * share), 3.5
            )


def tree(canvas: Canvas, feature: Feature, label: int) -> None:
    """A single tree; the country's share of conifers is darker and narrower."""
    style, (x, y) = canvas.city.style, feature.rings[0][0]
    share = (feature.seed % 1000) / 1000
    dark = share < style.conifers
    colour = np.array(style.colours["forest"]) * (0.9 if dark else 1.15 + 0.25 * share)
    radius = max(feature.radius or style.crown, 1.0) * (0.8 if dark else 1.0)
    draw_crown(canvas, x, y, radius, colour, feature.height or 8.0)
    at = (round((x - canvas.west) * canvas.scale * 16), round((canvas.north - y) * canvas.scale * 16))
    cv2.circle(canvas.instances, at, max(8, round(radius * canvas.scale * 16)), label, -1, cv2.LINE_8, 4)


def vines(canvas: Canvas, feature: Feature, label: int) -> None:
    """A vineyard: narrow rows of green on soil."""
    canvas.fill(feature.rings, mixed(canvas.colours["soil"], canvas.colours["forest"], 0.35), "soil", label)
    draw_rows(canvas, feature, (2.6, 0.3), (39.0, 0.06))


def pit(canvas: Canvas, feature: Feature, label: int) -> None:
    """A quarry: terraces, one below the other."""
    colour = mixed(canvas.colours["sand"], (196, 186, 170), 0.5)
    canvas.fill(feature.rings, colour, "soil", label)
    for number, inset in enumerate((9, 18, 29, 42), start=1):
        for ring in feature.inset(inset):
            canvas.fill([ring], mixed(colour, (120, 108, 92), 0.13 * number), "soil")
            canvas.line(ring, mixed(colour, INK, 0.35), 1.2, True)


def open_water(canvas: Canvas, feature: Feature, label: int) -> None:
    """Water, with a bright shore and deeper and shallower places."""
    colour = np.array(canvas.colours["water"], float)
    canvas.fill(feature.rings, colour, "water", label, 0.0)
    for ring in feature.rings:
        canvas.line(ring, mixed(colour, canvas.colours["sand"], 0.45), 1.6, True)
    mask, (rows, columns) = canvas.mask(feature.rings)
    if mask.any():
        place = (canvas.origin[0] + columns.start, canvas.origin[1] + rows.start, mask.shape[1], mask.shape[0])
        depth = window(noise(5, 1.6), *place)
        part = canvas.image[rows, columns]
        part[mask] = np.clip(part[mask] * (1 + 0.07 * depth[mask][:, None]), 0, 255)


# --- areas ------------------------------------------------------------------------------------------------------


def paved(canvas: Canvas, feature: Feature, label: int) -> None:
    """Pavement, on a square in large slabs."""
    tone = canvas.colours["paved"] if feature.kind == "square" else mixed(canvas.colours["asphalt"], WHITE, 0.18)
    canvas.fill(feature.rings, tone, "asphalt", label)
    if feature.kind == "square":
        draw_rows(canvas, feature, (6.0, 0.05))


def yard(canvas: Canvas, feature: Feature, label: int) -> None:
    """Paved ground of a works or a farm, with lorries or heaps."""
    share = 0.5 if feature.kind == "farmyard" else 0.15
    canvas.fill(feature.rings, mixed(canvas.colours["asphalt"], canvas.colours["soil"], share), "asphalt", label)
    points, random, _, angle = grid_inside(canvas, feature, (21, 15), 6)
    some = random > 0.72
    tones = CAR_COLOURS[(random[some] * 997).astype(int) % len(CAR_COLOURS)]
    draw_boxes(canvas, boxes(points[some], 10.5, 2.6, angle), tones, 3.4)


def schoolyard(canvas: Canvas, feature: Feature, label: int) -> None:
    """The ground of a school."""
    canvas.fill(feature.rings, canvas.colours["yard"], "grass", label)


def graves(canvas: Canvas, feature: Feature, label: int) -> None:
    """A cemetery: rows of graves, one in nine left free for a path."""
    canvas.fill(feature.rings, canvas.colours["graves"], "grass", label)
    points, random, u, angle = grid_inside(canvas, feature, (3.4, 2.0), 3)
    some = (random > 0.12) & (u % 9 != 0)
    tones = np.array([(176, 174, 170), (120, 118, 116), (206, 200, 190)])[(random[some] * 991).astype(int) % 3]
    draw_boxes(canvas, boxes(points[some], 1.9, 0.9, angle), tones, 0.7)


def plots(canvas: Canvas, feature: Feature, label: int) -> None:
    """Allotments: small gardens, each another green, most with a hut."""
    canvas.fill(feature.rings, mixed(canvas.colours["grass"], canvas.colours["soil"], 0.5), "grass", label)
    points, random, _, angle = grid_inside(canvas, feature, (17, 12), 5)
    greens = np.array([canvas.colours["grass"], canvas.colours["forest"], canvas.colours["soil"], (150, 160, 84)])
    draw_boxes(canvas, boxes(points, 15, 10.4, angle), greens[(random * 983).astype(int) % 4])
    huts = random > 0.25
    roofs = np.array([(150, 84, 66), (96, 92, 90), (196, 192, 186)])[(random[huts] * 977).astype(int) % 3]
    draw_boxes(canvas, boxes(points[huts] + 2.4, 4.4, 3.4, angle), roofs, 2.8)


def site_works(canvas: Canvas, feature: Feature, label: int) -> None:
    """A construction site: soil with machines and stacks, and a fence."""
    canvas.fill(feature.rings, mixed(canvas.colours["soil"], (206, 190, 160), 0.4), "soil", label)
    points, random, _, angle = grid_inside(canvas, feature, (13, 9), 5)
    some = random > 0.7
    tones = np.array([(214, 168, 52), (186, 96, 52), (86, 110, 152), (150, 146, 140)])
    draw_boxes(canvas, boxes(points[some], 6.5, 2.6, angle), tones[(random[some] * 971).astype(int) % 4], 2.6)
    for ring in feature.rings[:1]:
        canvas.line(ring, (120, 112, 100), 1.0, True)


def panels(canvas: Canvas, feature: Feature, label: int) -> None:
    """Rows of solar panels on grass."""
    canvas.fill(feature.rings, mixed(canvas.colours["grass"], canvas.colours["soil"], 0.25), "grass", label)
    points, random, _, angle = grid_inside(canvas, feature, (16.5, 7.0), 4)
    draw_boxes(canvas, boxes(points, 15.8, 3.9, angle), np.array((38, 48, 84)) * (0.9 + 0.2 * random[:, None]), 2.2)


def cars(canvas: Canvas, feature: Feature, label: int) -> None:
    """A car park: marked bays, a third to five sixths of them taken, lanes between."""
    canvas.fill(feature.rings, canvas.colours["asphalt"], "asphalt", label)
    points, random, u, angle = grid_inside(canvas, feature, (8.2, 2.7), 2.4)
    bays = u % 2 == 1  # columns of bays and lanes by turns, from half a lane within the edge
    points, random = points[bays], random[bays]
    marks = points + np.array([-math.sin(angle), math.cos(angle)]) * 1.35
    draw_boxes(canvas, boxes(marks, 4.8, 0.22, angle), WHITE)
    full = random < 0.35 + (feature.seed % 50) / 100
    tones = CAR_COLOURS[(random[full] * 967).astype(int) % len(CAR_COLOURS)]
    draw_boxes(canvas, boxes(points[full], 4.4, 1.9, angle), tones, 1.5)
    draw_boxes(canvas, boxes(points[full], 2.0, 1.6, angle), tones * 0.55)


def football(canvas: Canvas, feature: Feature, label: int) -> None:
    """A football field: mown stripes, and white lines in its proportions."""
    canvas.fill(feature.rings, canvas.colours["pitch"], "grass", label)
    middle, a, b, long, short = inner_box(feature, 0.93)
    draw_rows(canvas, Feature("pitch", feature.geometry, angle=math.atan2(b[1], b[0])), (15.0, 0.05))
    canvas.line(box_corners(middle, a, b, long, short), WHITE, 0.35, True)
    canvas.line(np.array([middle - b * short, middle + b * short]), WHITE, 0.35)
    turns = np.linspace(0, 2 * math.pi, 25)[:, None]
    canvas.line(middle + min(9.2, short / 2) * (np.cos(turns) * a + np.sin(turns) * b), WHITE, 0.35)
    for end in (-1, 1):
        box = box_corners(middle + a * long * 0.84 * end, a, b, long * 0.16, short * 0.55)
        canvas.line(box, WHITE, 0.35, True)


def court(canvas: Canvas, feature: Feature, label: int) -> None:
    """A court with its lines within a darker margin; where the feature has no colour, red for tennis, else blue."""
    colour = np.array(feature.colour or ((172, 92, 66) if feature.kind == "tennis_court" else (86, 122, 150)))
    canvas.fill(feature.rings, colour * 0.82, "plain", label)
    middle, a, b, long, short = inner_box(feature, 0.8)
    canvas.fill([box_corners(middle, a, b, long, short * 0.9)], colour, "plain")
    canvas.line(box_corners(middle, a, b, long, short * 0.9), WHITE, 0.3, True)
    canvas.line(np.array([middle - b * short, middle + b * short]), WHITE, 0.35)
    for side in (-0.6, 0.6):
        canvas.line(np.array([middle - a * long + b * short * side, middle + a * long + b * short * side]), WHITE, 0.25)


def lanes(canvas: Canvas, feature: Feature, label: int) -> None:
    """A running track: red lanes around a green."""
    canvas.fill(feature.rings, (178, 88, 68), "plain", label)
    for inset in (1.3, 2.6, 3.9):
        for ring in feature.inset(inset):
            canvas.line(ring, mixed((178, 88, 68), WHITE, 0.55), 0.2, True)
    for ring in feature.inset(7.5):
        canvas.fill([ring], canvas.colours["grass"], "grass")


def play(canvas: Canvas, feature: Feature, label: int) -> None:
    """A playground: sand with equipment in bright colours."""
    canvas.fill(feature.rings, canvas.colours["sand"], "soil", label)
    points, random, _, angle = grid_inside(canvas, feature, (5, 4), 1.5)
    tones = np.array([(206, 60, 50), (60, 106, 190), (226, 186, 50)])[(random * 953).astype(int) % 3]
    draw_boxes(canvas, boxes(points, 2.2, 1.6, angle), tones, 1.6)


def pool(canvas: Canvas, feature: Feature, label: int) -> None:
    """A swimming pool and its stone edge."""
    canvas.fill(feature.inset(-1.1), (214, 206, 192), "plain")
    canvas.fill(feature.rings, (86, 186, 208), "water", label)


def clarifier(canvas: Canvas, feature: Feature, label: int) -> None:
    """A round basin of a sewage plant, with its walkway."""
    middle, radius = feature.rings[0][:-1].mean(axis=0), math.sqrt(feature.geometry.area / math.pi)
    canvas.fill(feature.rings, (170, 168, 162), "plain", label, 1.5)
    for share, tone in ((0.9, (74, 82, 64)), (0.45, (92, 100, 78)), (0.12, (170, 168, 162))):
        canvas.fill([middle + (feature.rings[0] - middle) * share], tone, "water")
    turn = (feature.seed % 628) / 100
    canvas.line(np.array([middle, middle + radius * np.array([math.cos(turn), math.sin(turn)])]), WHITE, 0.8)


def jetty(canvas: Canvas, feature: Feature, label: int) -> None:
    """A pier on the water."""
    canvas.fill(feature.rings, (168, 156, 138), "plain", label, 1.2)


def boat(canvas: Canvas, feature: Feature, label: int) -> None:
    """A white boat, pointed at one end, with its cabin."""
    middle, a, b, long, short = inner_box(feature)
    hull = np.array([middle - a * long - b * short, middle + a * long * 0.4 - b * short, middle + a * long,
                     middle + a * long * 0.4 + b * short, middle - a * long + b * short])  # fmt: skip
    canvas.fill([hull], WHITE, "plain", label, 1.6)
    canvas.fill([middle + (hull - middle) * 0.55], (104, 122, 146), "plain")


PAINTERS: dict[str, Painter] = {
    "garden": garden, "park": _plain("park", "grass"), "paved": paved, "yard": yard, "field": furrows,
    "grass": _plain("grass", "grass"), "scrub": _plain("scrub", "leaves"), "canopy": woods, "orchard": planted,
    "vineyard": vines, "sand": _plain("sand", "soil"), "quarry": pit, "schoolyard": schoolyard, "cemetery": graves,
    "allotments": plots, "construction": site_works, "solar": panels, "water": open_water, "parking": cars,
    "running": lanes, "pitch": football, "tennis": court, "playground": play, "pool": pool, "clarifier": clarifier,
    "pier": jetty, "boat": boat, "kerb": built.kerb, "road": built.asphalt, "roundabout": built.roundabout,
    "rail": built.rails, "bridge": built.deck, "building": built.building, "greenhouse": built.glass,
    "tank": built.tank, "crane": built.crane, "turbine": built.turbine, "tree": tree,
}  # fmt: skip
