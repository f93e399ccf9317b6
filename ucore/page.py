"""One page with everything that a run measured, in one HTML file that opens without a network.

    write_page(load_reports("reports"), "reports", out="runs")

Names, captions and commands come from data: they are escaped. Pictures lie in the page; the map, which has scripts,
lies in a frame of its own that can reach nothing. Executed notebooks are linked where they are, seen from the page.
"""

import base64
import html
import io
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ucore.files import atomic_path
from ucore.freshness import is_stale
from ucore.notebooks import find_notebook, notebook_title
from ucore.page_style import PAGE, STYLE
from ucore.series import SERIES
from ucore.tables import dataset_of, measure_tables, result_tables, short_commit

WIDEST = 1200  # pixels of an embedded picture
MOST_PIXELS = 12_000_000
MAP, MAP_BYTES = "01_explore_map/map.html", 8_000_000
Reports = Sequence[Mapping[str, Any]]


def write_page(
    reports: Reports, root: str | Path = "reports", out: str | Path = "runs", earlier: Collection[str] = ()
) -> Path:
    """Write `root`/index.html from the reports under `root` and the pictures beside them. Returns its path.

    out: where the notebooks' own files lie; executed ones are linked there. Pictures and maps from there show the data
    themselves, and so are taken in only when these are simulated: others' licences may forbid to copy them. earlier:
    names of reports that were kept from earlier runs.
    """
    root, out = Path(root), Path(out)
    sections = [
        ("results", "Results", _results(reports)),
        ("figures", "Figures", "".join(_figures(reports, root, out))),
        ("map", "Map", _map(reports, root, out)),
        ("notebooks", "Notebooks", _notebooks(root, out)),
        ("measured", "Other measurements", _measurements(reports)),
        ("origin", "Origin of the numbers", _origin(reports, earlier)),
    ]
    sections = [section for section in sections if section[2]]
    menu = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{text}</section>'
        for name, title, text in sections
    )
    page = PAGE.format(style=STYLE, menu=menu, summary=_summary(reports, earlier), body=body)
    path = root / "index.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def _summary(reports: Reports, earlier: Collection[str]) -> str:
    """What the run was: data, seed, code, machine, time."""
    own = [report for report in reports if report["name"] not in earlier] or list(reports)
    data = sorted({dataset_of(report).replace(" val", "").replace(" test", "") for report in own})
    machine = own[0]["machine"]
    facts = {
        "Data": "; ".join(data),
        "Seed": ", ".join(sorted({str(report["seed"]) for report in own})),
        "Commit": ", ".join(sorted({short_commit(report) for report in own})),
        "Machine": f"{machine['cpu']}, {machine['cores']} cores, GPU {machine['gpu']}, torch {machine['torch']}",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items())
    simulated = [report["simulated"] for report in reports]
    note = ""
    if any(simulated):
        which = "All numbers" if all(simulated) else "Numbers marked so"
        note = (
            f'<p class="note"><strong>Simulated data.</strong> {which} are of made-up cities, not of real places.</p>'
        )
    return f"{note}<dl>{listed}</dl>"


def _results(reports: Reports) -> str:
    return "".join(table.html() for table in result_tables(reports))


def _measurements(reports: Reports) -> str:
    tables = measure_tables(reports)
    return "".join(f"<details><summary>{html.escape(t.title)}</summary>{t.html()}</details>" for t in tables)


# --- pictures -------------------------------------------------------------------------------------------------------


def _figures(reports: Reports, root: Path, out: Path) -> Iterator[str]:
    shown = set()
    for report in reports:
        stem = report["name"].partition("-")[0]
        paths = sorted((root / report["name"]).glob("*.png"))
        if report["simulated"] and stem not in shown:
            shown.add(stem)
            names = {path.name for path in paths}
            paths += [path for path in sorted((out / stem).glob("*.png")) if path.name not in names]
        for path in paths:
            if picture := _picture(path):
                source, alt = picture
                words = f"{report['name']}: {path.stem.replace('_', ' ')}, {dataset_of(report)}"
                told = html.escape(alt or words, quote=True)
                yield f'<figure><img src="{source}" alt="{told}"><figcaption>{html.escape(words)}</figcaption></figure>'


def _picture(path: Path) -> tuple[str, str] | None:
    """A picture as a data address, small enough for a page, and the words that its maker left in it.

    None: broken, or of more than MOST_PIXELS, as no figure of ours is; a damaged header may claim thousands of times so
    many.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            image.load()
            alt = str(image.info.get("Description", ""))
            raw, kind = path.read_bytes(), "png"
            if image.width > WIDEST or len(raw) > 300_000:
                height = round(image.height * min(1, WIDEST / image.width))
                small = image.convert("RGB").resize((min(image.width, WIDEST), height), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                small.save(buffer, "WEBP", quality=85)
                raw, kind = buffer.getvalue(), "webp"
    except Exception:  # Pillow raises nearly anything on damaged bytes
        return None
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode('ascii')}", alt


def _map(reports: Reports, root: Path, out: Path) -> str:
    path = out / MAP
    if not path.is_file():
        return ""
    link = f'<p><a href="{_address(path, root)}">The map in a window of its own</a></p>'
    own = [report for report in reports if report["name"].startswith("01_")]
    if path.stat().st_size > MAP_BYTES or not own or not all(report["simulated"] for report in own):
        return link
    text = html.escape(path.read_text("utf-8", "replace"), quote=True)
    return f'{link}<iframe title="Map of the simulated samples" sandbox="allow-scripts" srcdoc="{text}"></iframe>'


# --- words ----------------------------------------------------------------------------------------------------------


def _notebooks(root: Path, out: Path) -> str:
    items = []
    for chapter in SERIES:
        page = out / "notebooks" / chapter.name / f"{chapter.name}.html"
        if page.is_file():
            title = html.escape(notebook_title(find_notebook(chapter.name)))
            items.append(f'<li><a href="{_address(page, root)}">{chapter.name}</a>: {title}</li>')
    return f"<p>As executed, with all outputs.</p><ul>{''.join(items)}</ul>" if items else ""


def _address(path: Path, root: Path) -> str:
    return html.escape(quote(Path(os.path.relpath(path, root)).as_posix()), quote=True)


def _origin(reports: Reports, earlier: Collection[str]) -> str:
    heads = ("report", "data", "seed", "commit", "code", "minutes", "command")
    rows = []
    for report in reports:
        code = "as it is now" if not is_stale(report) else "changed since"
        code += ", an earlier run" if report["name"] in earlier else ""
        minutes = f"{sum(report['seconds'].values()) / 60:.1f}"
        cells = (report["name"], dataset_of(report), str(report["seed"]), short_commit(report), code, minutes)
        plain = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells[1:])
        command = f"<td><code>{html.escape(report['command'])}</code></td>"
        rows.append(f'<tr><th scope="row">{html.escape(cells[0])}</th>{plain}{command}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="Origin of the numbers">{table}</div>'
