"""What the API pages show of an object: its docstring and its arguments as Python has them.

The classes of a family take their docstring from one place, and Flax makes dataclasses of modules.
Neither stands in the source, which is what the generator of the site reads. This extension of it
asks Python, and puts the notation of the docstrings into Markdown.
"""

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import griffe

import cojax

# What Flax passes to constructors when it rebuilds a module.
_PLUMBING = {"layers", "order", "linen"}

_PAGES = "\n".join(page.read_text() for page in Path(__file__).with_name("api").glob("*.md"))

# Where the pages have what docstrings name, by the last part of the name.
_ANCHORS = {
    **{name: f"CoModule.{name}" for name in vars(cojax.CoModule) if not name.startswith("_")},
    **{
        path.rpartition(".")[2]: path
        for path in re.findall(r"^::: cojax\.(\S+)$", _PAGES, flags=re.MULTILINE)
    },
}


class Docstrings(griffe.Extension):
    """Docstrings in Markdown, and the arguments of modules and functions."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        here = griffe.dynamic_import(cls.path)
        if dataclasses.is_dataclass(here) or hasattr(here, "_fields"):
            dataclass = griffe.ExprName("dataclasses.dataclass")
            cls.decorators.append(griffe.Decorator(dataclass, lineno=None, endlineno=None))

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        if func.name == "__init__":
            shown = [each for each in func.parameters if each.name not in _PLUMBING]
            func.parameters = griffe.Parameters(*shown)
        for each in func.parameters:
            if str(each.annotation) == "Any":
                each.annotation = None
        if str(func.returns) == "Any":
            func.returns = None

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        if func.path == f"cojax.{func.name}.{func.name}":
            # The package has the function under this name, and not the file that it is in.
            package = func.package
            package.set_member(func.name, griffe.Alias(func.name, func, parent=package))

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **_: Any) -> None:
        text = obj.docstring.value if obj.docstring else ""
        if obj.is_class:
            text = inspect.getdoc(griffe.dynamic_import(obj.path)) or ""
        if not text:
            return
        obj.docstring = griffe.Docstring(
            markdown(text),
            parent=obj,
            parser=loader.docstring_parser,
            parser_options=loader.docstring_options,
        )
        for section in obj.docstring.parsed:
            if section.kind is griffe.DocstringSectionKind.attributes:
                for item in section.value:
                    if "," in item.name:  # The parser leaves it the type of the item before.
                        item.annotation = None


def markdown(text: str) -> str:
    """A docstring in Markdown: links, blocks of code, and lists."""
    text = re.sub(r":(?:class|func|meth|mod):`(~?[\w.]+)`", _link, text)
    text = re.sub(r"^(.*\S)::\n\n((?: {4}.*\n?|\n)+)", _block, text, flags=re.MULTILINE)
    text = re.sub(r"^(Shapes|Returns):\n((?: {2}.*\n?)+)", _list, text, flags=re.MULTILINE)
    return re.sub(r"^  (?:\w+,\s+)+\w+:", _names, text, flags=re.MULTILINE)


def _link(match: re.Match[str]) -> str:
    path = match[1].removeprefix("~").removeprefix("cojax.")
    name = path.rpartition(".")[2]
    if name in _ANCHORS:
        return f"[`{path}`][cojax.{_ANCHORS[name]}]"
    return f"`{path}`"


def _block(match: re.Match[str]) -> str:
    heading = "**Example:**" if match[1] == "Example" else f"{match[1]}:"
    return f"{heading}\n\n```python\n{textwrap.dedent(match[2]).strip()}\n```\n\n"


def _list(match: re.Match[str]) -> str:
    said = " ".join(match[2].split())
    items = said.rstrip(".").split("; ") if match[1] == "Shapes" else [said]
    return f"**{match[1]}:**\n\n" + "".join(f"* {item}\n" for item in items)


def _names(match: re.Match[str]) -> str:
    """Several names before one colon, with narrow spaces: so they are one to the parser."""
    return "  " + ",\u202f".join(match[0].replace(",", " ").split())
