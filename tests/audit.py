"""`make audit`: whether any locked package has a known weakness. pip-audit is fetched for it, and not locked."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
TOOL = "pip-audit==2.9.0"
UNREACHED = re.compile(
    r"ConnectionError|ServiceError|Max retries|timed out|Failed to fetch|dns error|resolve host", re.I
)


def main() -> int:
    """0: none known; 1: some, which are listed; 2: the service, or the tool, cannot be reached, or left some out."""
    local = LOCK.parent / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(local) if local.is_file() else None)
    if uv is None:
        print("make audit needs uv, which was not found; run make setup in a fresh clone.", file=sys.stderr)
        return 2
    options = [
        "--requirement",
        str(LOCK),
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
        "--format",
        "json",
    ]
    done = subprocess.run([uv, "tool", "run", "-q", TOOL, *options], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        why = "cannot be reached" if UNREACHED.search(done.stderr) else "did not answer"
        print(f"The service that knows of weaknesses {why} ({lines[-1][:160]}); nothing was checked.", file=sys.stderr)
        return 2
    return told(found)


def told(found: list[dict[str, Any]]) -> int:
    """Print what was found of each package. 2, too, where the service knows nothing of a package."""
    weak = [package for package in found if package.get("vulns")]
    unknown = [package["name"] for package in found if "skip_reason" in package]
    for package in weak:
        for weakness in package["vulns"]:
            better = ", ".join(weakness.get("fix_versions", ())) or "no version yet"
            print(f"{package['name']} {package['version']}: {weakness['id']}, mended in {better}")
    print(f"{len(found) - len(unknown)} packages asked about, {len(weak)} with a known weakness.")
    if unknown:
        some = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        print(f"The service knows nothing of {len(unknown)}, which were not checked: {some}", file=sys.stderr)
    return 1 if weak else 2 if unknown or not found else 0


if __name__ == "__main__":
    sys.exit(main())
