"""The README and the chapter on training say what is so: every block of code in them runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cojax as co

ROOT = Path(__file__).parents[1]
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "docs/training.md")}


def blocks(page):
    """The language and the code of each."""
    return re.findall(r"```(\w+)\n(.*?)```", PAGES[page], flags=re.DOTALL)


BLOCKS = blocks("README.md")
# What installs runs in CI, which calls these very lines.
INSTALLS = [code for language, code in BLOCKS if language == "bash" and "pip install" in code]


@pytest.mark.parametrize("page", PAGES)
def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize(
    "code", [code for lang, code in BLOCKS if lang == "bash" and code not in INSTALLS]
)
def test_the_shell_blocks_run(tmp_path, code):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == '{"line": 1, "output": null, "label": null}'


def test_ci_runs_the_two_commands():
    assert len(INSTALLS) == 2
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_language_is_known():
    assert {language for page in PAGES for language, _ in blocks(page)} == {"python", "bash"}


def test_the_names_in_the_text_exist():
    for name in set(re.findall(r"`co\.(\w+)", "".join(PAGES.values()))):
        assert hasattr(co, name), name
