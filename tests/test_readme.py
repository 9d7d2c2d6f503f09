"""The README says what is so: every block of code in it runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cojax as co

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
# What installs runs in CI, which calls these very lines.
INSTALLS = [code for language, code in BLOCKS if language == "bash" and "pip install" in code]


@pytest.mark.usefixtures("quick_compilation")
def test_the_python_blocks_run_one_after_the_other_and_print_what_they_say(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "README.md", "exec"), names)
            said = re.findall(r"^# \|(?: (.*))?$", code, flags=re.MULTILINE)
            assert capsys.readouterr().out.splitlines() == said


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
    assert {language for language, _ in BLOCKS} == {"python", "bash", "text"}


def test_the_names_in_the_text_exist():
    for name in set(re.findall(r"`co\.(\w+)", TEXT)):
        assert hasattr(co, name), name
