"""Tables made from reports: each kind of measurement gets the columns that suit it, as Markdown or HTML.

for table in result_tables(load_reports("reports")):
    print(table.markdown())
"""

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ucore.errors import DataError
from ucore.evaluate import METRICS, RECALLS
from ucore.files import atomic_path
from ucore.ties import TIES

Reports = Iterable[Mapping[str, Any]]
DASH = "–"
LOST = "mR_lost"
_CHANGES = re.compile(r"mR_(?:difference|gain)(?: (?:over|to) (?P<base>.+))?")
_BORDER = re.compile(r"(?P<source>[^,]+) -> (?P<target>[^,]+)(?:, (?P<rest>.+))?")


class Table(NamedTuple):
    """title, a sentence about it, heads of the columns, rows of as many plain texts; numeric: columns of numbers."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    numeric: range

    def markdown(self, title: bool = True) -> str:
        """The table as Markdown, with its title and note where wanted; names in it are no markup."""
        rule = ["---:" if column in self.numeric else "---" for column in range(len(self.head))]
        names = set(range(len(self.head))) - set(self.numeric)  # numbers and their brackets are ours
        plain = [[escape_markdown(cell) if i in names else cell for i, cell in enumerate(row)] for row in self.rows]
        heads = [escape_markdown(head) for head in self.head]
        lines = [heads, rule, *plain]
        above = f"**{escape_markdown(self.title)}.** {escape_markdown(self.note)}".strip() + "\n\n" if title else ""
        return above + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def html(self) -> str:
        """The table as HTML with a caption; its first column heads the rows. Names in it are no markup."""
        heads = "".join(f'<th scope="col"{self._class(i)}>{html.escape(head)}</th>' for i, head in enumerate(self.head))
        body = []
        for row in self.rows:
            first, *others = map(html.escape, row)
            cells = "".join(f"<td{self._class(i)}>{cell}</td>" for i, cell in enumerate(others, start=1))
            body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
        told = f"<strong>{html.escape(self.title)}.</strong> {html.escape(self.note)}"
        caption = f"<caption><span>{told}</span></caption>"
        # What is wider than the window can be scrolled, with the keyboard, too.
        inner = f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        return f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(self.title)}">{inner}</div>'

    def _class(self, column: int) -> str:
        return ' class="number"' if column in self.numeric else ""


def result_tables(reports: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables that compare models: recalls, what is lost at borders, what changes of a setting bring."""
    found = [recall_table(reports), *border_tables(reports), change_table(reports)]
    return [table for table in found if table is not None]


def measure_tables(reports: Sequence[Mapping[str, Any]]) -> list[Table]:
    """For each report, all that `result_tables` do not show: counts, lengths, shares; labels by metrics."""
    tables = []
    for report in reports:
        rest = [entry for entry in report["metrics"] if not _is_result(entry)]
        cells = _by_label(rest)
        names = list(dict.fromkeys(entry["metric"] for entry in rest))
        rows = [[label, *(_plain_number(of[name]) if name in of else DASH for name in names)]
                for label, of in cells.items()]  # fmt: skip
        if rows:
            note = f"Measured on {dataset_of(report)}."
            heads = ["what", *(name.replace("_", " ") for name in names)]
            tables.append(Table(f"{report['name']}, other measurements", note, heads, rows, range(1, len(heads))))
    return tables


# --- kinds --------------------------------------------------------------------------------------------------------


def recall_table(
    reports: Reports, metrics: Sequence[str] = (*RECALLS, "mR"), intervals: Sequence[str] = ("mR",)
) -> Table | None:
    """A row a label in the order measured, a column a metric, of reports that compare models as they are.

    Metrics named in `intervals` show [low, high] where the report has them. A label without any recall, as of a border,
    and the arms of an ablation belong to other tables. None where no row is left.
    """
    heads = [metric.replace("image_to_text_", "i2t ").replace("text_to_image_", "t2i ") for metric in metrics]
    rows = []
    for report, label, of_label in _models(reports):
        shown = {name: of_label[name] for name in metrics if name in of_label}
        if shown:
            numbers = [_number(shown[name], name in intervals) if name in shown else DASH for name in metrics]
            rows.append([dataset_of(report), label, *numbers, report["name"]])
    note = "Percent; brackets: 95 % interval, resampling images."
    heads = ["dataset", "model", *(head.replace("_", " ") for head in heads), "report"]
    return Table("Retrieval", note, heads, rows, range(2, 2 + len(metrics))) if rows else None


def recall_rows(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of `recall_table` for a plot, without those of other protocols; where there are several
    datasets, each row names its own as `gallery`. Where two reports call a model of one gallery the same, the report
    stands beside it."""
    found = [
        (report, label, of_label) for report, label, of_label in _models(reports)
        if "duplicate" not in label and TIES not in label and all(name in of_label for name in RECALLS)
    ]  # fmt: skip
    several = len({dataset_of(report) for report in reports}) > 1
    times = Counter((dataset_of(report), label) for report, label, _ in found)
    rows = []
    for report, label, of_label in found:
        gallery = {"gallery": dataset_of(report)} if several else {}
        full = label if times[dataset_of(report), label] == 1 else f"{label} ({report['name']})"
        rows += [{**entry, **gallery, "label": full} for entry in of_label.values() if entry["metric"] in METRICS]
    return rows


def _models(reports: Reports) -> Iterator[tuple[Mapping[str, Any], str, dict[str, Mapping[str, Any]]]]:
    """Each report, label and its metrics by name, but for borders and the arms of ablations."""
    for report in reports:
        if not any(entry["metric"] == "mR_difference" for entry in report["metrics"]):
            for label, of_label in _by_label(report["metrics"]).items():
                if not _BORDER.fullmatch(label):
                    yield report, label, of_label


def border_tables(reports: Reports) -> list[Table]:
    """For each report with labels "source -> target", a matrix of mR: a row a source, a column a target."""
    tables = []
    for report in reports:
        matrix: dict[str, dict[str, str]] = {}
        lost = []
        for entry in report["metrics"]:
            border = _BORDER.fullmatch(entry["label"])
            if entry["metric"] == LOST:
                rest = entry["label"].partition(", percent")[2].lstrip(", ")
                lost.append(f"{entry['value']:.1f} %" + (f" ({rest})" if rest else ""))
            elif border and entry["metric"] == "mR":
                source = border["source"] + (f", {border['rest']}" if border["rest"] else "")
                matrix.setdefault(source, {})[border["target"]] = _number(entry, True)
        targets = list(dict.fromkeys(target for of_source in matrix.values() for target in of_source))
        rows = [[source, *(of.get(target, DASH) for target in targets)] for source, of in matrix.items()]
        if rows:
            loss = f" Lost on average by crossing a border: {', '.join(lost)}." if lost else ""
            title = f"Across borders, {dataset_of(report)}"
            note = (
                f"mR in percent with its 95 % interval. Rows: trained in; columns: tested in.{loss} ({report['name']})"
            )
            tables.append(Table(title, note, ["trained in", *targets], rows, range(1, 1 + len(targets))))
    return tables


def change_table(reports: Reports) -> Table | None:
    """A row for each measured difference of mR: what was changed, against what, the change and its interval."""
    rows = []
    for report in reports:
        means = _by_label(report["metrics"])
        bases = [label for label, of in means.items() if "mR" in of and not any(map(_CHANGES.fullmatch, of))]
        for entry in report["metrics"]:
            change = _CHANGES.fullmatch(entry["metric"])
            if not change:
                continue
            mean = means[entry["label"]].get("mR")
            low, high = entry["low"], entry["high"]
            sure = DASH if None in (low, high) else "yes" if low > 0 or high < 0 else "no"
            told = f"{entry['value']:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if None not in (low, high) else "")
            base = change["base"] or (bases[0] if len(bases) == 1 else "base")
            rows.append([dataset_of(report), entry["label"], base, _number(mean, False) if mean else DASH, told, sure,
                         report["name"]])  # fmt: skip
    note = "Points of mR, paired by query, with the 95 % interval; one that holds 0 is not told from chance."
    heads = ["dataset", "changed", "against", "mR", "change", "told from chance", "report"]
    return Table("What changes bring", note, heads, rows, range(3, 5)) if rows else None


def _is_result(entry: Mapping[str, Any]) -> bool:
    name = entry["metric"]
    return name in METRICS or name == LOST or _CHANGES.fullmatch(name) is not None


def _by_label(entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["label"], {})[entry["metric"]] = entry
    return found


def _number(entry: Mapping[str, Any], with_interval: bool) -> str:
    low, high = entry["low"], entry["high"]
    return f"{entry['value']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if with_interval and None not in (low, high) else "")


def _plain_number(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:,}" if isinstance(entry["value"], int) else _number(entry, True)


def dataset_of(report: Mapping[str, Any]) -> str:
    """The dataset's name; simulated data are called so."""
    return report["dataset"] + (" (simulated)" if report["simulated"] else "")


# --- pages --------------------------------------------------------------------------------------------------------


def results_text(reports: Sequence[Mapping[str, Any]]) -> str:
    """`result_tables` as Markdown, for the README. Raises DataError where there are none."""
    tables = result_tables(reports)
    if not tables:
        raise DataError(f"No report holds any of {', '.join((*RECALLS, 'mR'))}; run the notebooks that measure them.")
    others = [f"{name} ({commit})" for name, commit in of_other_commits(reports).items()]
    told = f"Of another commit than most: {escape_markdown(', '.join(others))}.\n\n" if others else ""
    return told + "\n".join(table.markdown(title=len(tables) > 1) for table in tables)


def of_other_commits(reports: Reports) -> dict[str, str]:
    """Names and commits of reports that are not of the commit that more than half are of; none without such a one."""
    commits = {report["name"]: short_commit(report) for report in reports}
    counts = Counter(commits.values())
    most = max(counts, key=lambda commit: counts[commit], default="")
    if 2 * counts[most] <= len(commits):
        return {}
    return {name: commit for name, commit in commits.items() if commit != most}


def provenance(reports: Reports) -> str:
    """Where the numbers come from: a Markdown line a report, with data, seed, commit, machine and command."""
    lines = []
    for report in reports:
        kind, machine = "simulated" if report["simulated"] else "real", report["machine"]
        where = f"{machine['cpu']}, {machine['cores']} cores, GPU {machine['gpu']}, torch {machine['torch']}"
        lines.append(
            f"- {escape_markdown(report['name'])}: {escape_markdown(report['dataset'])} ({kind} data), "
            f"seed {report['seed']}, commit {short_commit(report)}, {escape_markdown(where)}, "
            f"{sum(report['seconds'].values()) / 60:.1f} min; {_code(report['command'])}"
        )
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Markdown's code span, behind more backticks than the text holds in a row: within, nothing is markup."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    edge = " " if "`" in text else ""
    return f"{fence}{edge}{' '.join(text.split())}{edge}{fence}"


def short_commit(report: Mapping[str, Any]) -> str:
    """Twelve digits of a report's commit, with "+dirty" where it has that."""
    return report["commit"][:12] + ("+dirty" if report["commit"].endswith("+dirty") else "")


def write_results(reports: Sequence[Mapping[str, Any]], root: str | Path = "reports") -> Path:
    """Write `root`/results.md, the page with all numbers and their origin. Returns its path."""
    path = Path(root) / "results.md"
    intro = "Made by notebooks/09_results.ipynb from the metrics.json files beside it; not edited by hand."
    others = "\n".join(table.markdown() for table in measure_tables(reports))
    others = f"\n## Other measurements\n\n{others}" if others else ""
    page = f"# Results\n\n{intro}\n\n{results_text(reports)}{others}\n## Origin\n\n{provenance(reports)}"
    with atomic_path(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def update_marked_section(path: str | Path, marker: str, text: str) -> None:
    """Replace what stands between `<!-- BEGIN marker -->` and `<!-- END marker -->` in a Markdown file by `text`.

    All else stays as it is. Raises DataError when the file is missing or has not each line once, in this order.
    """
    begin, end = f"<!-- BEGIN {marker} -->", f"<!-- END {marker} -->"
    path = Path(path)
    try:
        page = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path} as text ({error}); name an existing Markdown file.") from error
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        raise DataError(f"{path} must hold {begin} and, below it, {end}, each once; add them where the text belongs.")
    if begin in text or end in text:
        raise DataError(f"The text for {path} holds the marker {marker} itself; remove it from the text.")
    head, tail = page[: page.index(begin) + len(begin)], page[page.index(end) :]
    with atomic_path(path) as temporary:
        temporary.write_bytes(f"{head}\n{text.strip()}\n{tail}".encode())


def escape_markdown(text: str) -> str:
    """Names come from datasets: shown as they are, they must not become markup or another column."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
