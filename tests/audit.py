"""`make audit`: whether any locked package has a known weakness. pip-audit is fetched for it, and not locked."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
TOOL = "pip-audit==2.9.0"
UNREACHED = re.compile(
    r"ConnectionError|ServiceError|Max retries|timed out|Failed to fetch|dns error|resolve host", re.I
)


def main() -> int:
    """0: none known; 1: some, which are listed; 2: the service, or the tool, cannot be reached."""
    local = LOCK.parent / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(local) if local.is_file() else None)
    if uv is None:
        print("make audit needs uv, which was not found; run make setup in a fresh clone.", file=sys.stderr)
        return 2
    options = ["--requirement", str(LOCK), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    done = subprocess.run([uv, "tool", "run", "-q", TOOL, *options], capture_output=True, text=True, check=False)
    if done.returncode and not done.stdout.strip():
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        why = "cannot be reached" if UNREACHED.search(done.stderr) else "did not answer"
        print(f"The service that knows of weaknesses {why} ({lines[-1][:160]}); nothing was checked.", file=sys.stderr)
        return 2
    print(done.stdout.strip() or done.stderr.strip())
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
