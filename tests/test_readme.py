"""Every example of the README runs as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = [line.strip()[2:] for line in README.splitlines() if line.startswith("    $ ridgeline")]
#: Those that measure or run large models take long, and `make demo` and `make bench` run them.
HEAVY = ("ridgeline measure", "ridgeline check")
SNIPPETS = [
    block
    for block in re.findall(r"\n\n((?:    .+\n|\n(?=    ))+)", README)
    if "import ridgeline" in block or "import numpy" in block
]


def test_the_readme_has_examples():
    assert len(COMMANDS) >= 4
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(HEAVY)])
def test_a_command_of_the_readme_runs(command, tmp_path):
    arguments = shlex.split(command)[1:]
    environment = {**os.environ, "RIDGELINE_CACHE": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-m", "ridgeline.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_of_the_readme_runs(snippet, tmp_path):
    code = "\n".join(line[4:] for line in snippet.splitlines())
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()
