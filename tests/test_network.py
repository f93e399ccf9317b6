"""Nothing is asked of a network, and nothing told to anybody, unless the user names an address."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ucore

BLOCKED = """
import os, socket, sys
asked = []
def refuse(*args, **more):
    asked.append(str((args, more)))
    raise OSError("no network here")
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
"""
EVERY = """
import importlib, pkgutil, ucore
for module in pkgutil.iter_modules(ucore.__path__):
    importlib.import_module("ucore." + module.name)
from huggingface_hub import constants
assert constants.HF_HUB_DISABLE_TELEMETRY, "telemetry"
"""
COMMANDS = """
from ucore.cli import main
for line in (["simulate", "--countries", "finland,germany,spain", "--tiles", "2", "--out", "set", "--workers", "1"],
             ["data", "inspect", "set"], ["search", "--help"]):
    sys.argv = ["ucore", *line]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (line, stop.code)
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a fresh Python that has no network and nothing set that would keep it from one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DO_NOT", "UCORE_"))}
    code = f"{BLOCKED}\n{code}\nassert not asked, asked\nprint('quiet')"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=kept, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("code", [EVERY, COMMANDS], ids=["import", "commands"])
def test_no_network_is_touched(code, tmp_path):
    done = run(code, tmp_path)
    assert done.stdout.endswith("quiet\n"), done.stderr[-2000:]


def test_the_check_above_would_see_it(tmp_path):
    done = run("import requests\ntry:\n    requests.get('http://127.0.0.1:9')\nexcept Exception:\n    pass", tmp_path)
    assert "127.0.0.1" in done.stderr


def test_telemetry_stays_off_where_nobody_said_otherwise():
    assert ucore.__version__
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "1"
