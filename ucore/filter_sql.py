"""A filter as an SQL condition, for tables that are searched elsewhere (LanceDB).

SQL says domains, sources, tags and boxes. A circle and a polygon become boxes around them, and `exactly` is what is
left to be checked on the rows that come back. Tags are looked for in a list column `terms`: tags and their bare keys.
"""

import math
from collections.abc import Sequence

from ucore.filters import EARTH_KM, Filter


def quoted(name: str) -> str:
    """A name as an SQL string, its quotes doubled."""
    return "'" + name.replace("'", "''") + "'"


def one_of(column: str, names: Sequence[str]) -> str:
    """Condition: `column` is one of `names`, of which there must be one at least."""
    return f"{column} IN ({', '.join(map(quoted, names))})"


def has_any(tags: Sequence[str]) -> str:
    """Condition: the row has any of `tags`, in full or as a bare key."""
    return f"array_has_any(terms, [{', '.join(map(quoted, tags))}])"


def exactly(where: Filter) -> Filter:
    """The part of a filter that its SQL says only roughly."""
    return Filter(near=where.near, km=where.km, polygon=where.polygon)


def boxes(where: Filter) -> list[str]:
    """Conditions on lon and lat; around a circle and a polygon wide enough for rounding."""
    found = [_box_sql(*where.box)] if where.box is not None else []
    if where.near is not None and where.km is not None:
        (lat, lon), turn = where.near, where.km / EARTH_KM * (1 + 1e-9)
        high, low = lat + math.degrees(turn), lat - math.degrees(turn)
        wide = 180.0
        if high < 90 and low > -90:
            wide = math.degrees(math.asin(min(1.0, math.sin(turn) / math.cos(math.radians(lat))))) * (1 + 1e-9)
        west = lon - wide if lon - wide >= -180 else lon - wide + 360
        found.append(_box_sql(west, low - 1e-9, west + 2 * wide, high + 1e-9))
    if where.polygon is not None:
        west, south, east, north = where.polygon.bounds
        west, east = (west, east) if west >= -180 and east <= 180 else (-180.0, 180.0)
        found.append(_box_sql(west, south, east, north))
    return found


def _box_sql(west: float, south: float, east: float, north: float) -> str:
    lon = f"(lon >= {west!r} AND lon <= {east!r})"
    if east >= 180:
        lon = f"({lon} OR lon <= {east - 360!r})"
    if west == -180:
        lon = f"({lon} OR lon = 180)"
    return f"{lon} AND lat >= {south!r} AND lat <= {north!r}"
