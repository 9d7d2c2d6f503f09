"""The site and the docstrings say what is so, and leave nothing out."""

import importlib.metadata
import inspect
import operator
import re
import textwrap
from pathlib import Path

import continual
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from continual import convert

import cojax as co

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = sorted(page for page in DOCS.rglob("*.md") if "```python" in page.read_text())


def public_names():
    """The names of ``co.__all__``, and those of the modules among them."""
    for name in co.__all__:
        value = getattr(co, name)
        if inspect.ismodule(value):
            yield from (f"{name}.{each}" for each in value.__all__)
        else:
            yield name


def families():
    """The names on each page of the API reference, by its title, in the order of the site."""
    pages = re.findall(r"api/\w+\.md", (ROOT / "mkdocs.yml").read_text())
    texts = [(DOCS / page).read_text() for page in pages]
    named = {re.match("# (.*)", t)[1]: re.findall(r"^::: cojax\.(\S+)$", t, re.M) for t in texts}
    return {title: [name for name in names if name in PUBLIC] for title, names in named.items()}


PUBLIC = list(public_names())
FAMILIES = families()
# Nothing to show: one meets them when they are raised.
ERRORS = {"CheckpointError", "ConversionError", "InputError", "StateFileError"}


def of_name(name):
    return operator.attrgetter(name)(co)


def docstring(name):
    return inspect.getdoc(of_name(name)) or ""


def examples(name):
    if not callable(of_name(name)):  # A constant has the docstring of its class.
        return []
    blocks = re.findall(r"^Example::\n\n((?: {4}.*\n?|\n)+)", docstring(name), re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


def is_module(name):
    value = of_name(name)
    if isinstance(value, type):
        return issubclass(value, co.CoModule)
    return name[0].isupper()  # Residual and Zero are functions, and modules by name.


def complete(name):
    return bool(examples(name)) and ("Shapes:" in docstring(name) or not is_module(name))


def test_every_public_name_has_an_example_and_every_module_its_shapes():
    # An activation's mathematics are its docstring; the page of the family shows how they run.
    asked = {name for name in PUBLIC if callable(of_name(name))} - {*FAMILIES["Activations"]}
    assert {name for name in asked if not complete(name)} == ERRORS


@pytest.fixture
def _quick(tmp_path, monkeypatch):
    """Runs in an empty folder, with random numbers that compile ten times as fast."""
    monkeypatch.chdir(tmp_path)
    with jax.default_prng_impl("rbg"):
        yield


@pytest.mark.usefixtures("_quick", "quick_compilation")
@pytest.mark.parametrize("name", [name for name in PUBLIC if examples(name)])
def test_the_examples_of_docstrings_run(name):
    for code in examples(name):
        assert re.search(rf"\bco\.{re.escape(name)}\b", code), "shows something else"
        names = {"co": co, "jax": jax, "jnp": jnp, "nn": nn, "np": np, "torch": torch}
        exec(compile(code, name, "exec"), names)


def included(match):
    """The part of the README that a page includes."""
    part = rf"\[start:{match[1]}\] -->\n(.*?)<!-- --8<-- \[end:{match[1]}\]"
    return re.search(part, README, re.DOTALL)[1]


@pytest.mark.usefixtures("_quick", "quick_compilation")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_one_after_the_other(page):
    text = re.sub(r'^--8<-- "README.md:([\w-]+)"$', included, page.read_text(), flags=re.MULTILINE)
    names = {"__name__": page.stem}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, page.name, "exec"), names)


def test_every_public_name_is_on_one_page_of_the_reference():
    named = [name for names in FAMILIES.values() for name in names]
    assert sorted(named) == sorted(PUBLIC)


def test_the_readme_has_the_families_of_the_reference():
    table = r"^## Modules$.*?^\|---\|---\|\n(.*?)\n\n"
    rows = re.search(table, README, re.DOTALL | re.MULTILINE)[1]
    cells = [row.strip("| ").split(" | ") for row in rows.splitlines()]
    assert {title: re.findall(r"`([\w.]+)`", names) for title, names in cells} == FAMILIES


ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (DOCS / "continual.md").read_text().splitlines()
    if line.startswith("| `")
]


def named_in(cell):
    """What the code in a cell begins with: a name, before its arguments."""
    return [code.split("(")[0] for code in re.findall(r"`([^`]+)`", cell)]


def of_continual():
    """What continual exports, by its names in the table."""
    exported = {name for name, value in vars(continual).items() if not inspect.ismodule(value)}
    public = {f"co.{name}" for name in exported if not name.startswith("_")}
    methods = {f"net.{name}" for name in vars(continual.CoModule) if not name.startswith("_")}
    mapped = {*convert.NAIVE_MAPPING, *convert.CONDITIONAL_MAPPING, *convert.MODULE_MAPPING}
    torch = {f"nn.{kind.__name__}" for kind in mapped if kind.__module__.startswith("torch.nn")}
    return public | methods | torch | {"co.onnx.export", "co.convert.register"}


def of_its_readme():
    text = importlib.metadata.metadata("continual-inference").get_payload()
    modules = set(re.findall(r"`((?:co|nn)\.\w+)`", text)) | set(re.findall(r"\bnet\.\w+", text))
    zoo = set(re.findall(r"^(Co[\w-]+) +\|", text, re.MULTILINE))
    compatible = re.search("## Compatibility(.*?)## ", text, re.DOTALL)[1]
    return modules | zoo | set(re.findall(r"^- \[([\w-]+)\]", compatible, re.MULTILINE))


def test_the_table_has_every_name_of_continual_and_of_its_readme():
    names = {name for theirs, _, _ in ROWS for name in named_in(theirs)}
    assert len(of_continual()) > 100
    assert len(of_its_readme()) > 80
    assert of_continual() | of_its_readme() <= names


OWNERS = {"co": co, "net": co.Sequential, "stream": co.Stream, "frame": co.Frame}


def counterparts(cell):
    """The names of cojax in a cell: whether each is there and takes the keywords it is given."""
    calls = re.findall(r"\b((co|net|stream|frame)\.[\w.]+)(\([^`]*)?", cell)
    return {name: exists(name, re.findall(r"(\w+)=", arguments)) for name, _, arguments in calls}


def exists(name, keywords):
    owner, *path = name.split(".")
    found = OWNERS[owner]
    for part in path:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    if not keywords:
        return True
    parameters = inspect.signature(found).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return anything or set(keywords) <= set(parameters)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_counterpart_exists_unless_it_is_said_not_to_yet(row):
    _theirs, ours, differs = row
    there = counterparts(ours)
    if "not yet" in ours:
        assert not any(there.values()), "exists: take the 'not yet' away"
    else:
        assert all(there.values()), "does not exist"
    assert all(counterparts(differs).values())
    for method in re.findall(r'method="(\w+)"', ours):
        assert hasattr(co.CoModule, method)


def test_what_has_the_same_name_here_is_its_own_counterpart():
    for theirs, ours, _ in ROWS:
        for name in named_in(theirs):
            library, _, rest = name.partition(".")
            if library in ("co", "nn") and rest in co.__all__:
                assert f"co.{rest}" in counterparts(ours), name
