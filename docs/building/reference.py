"""The reference: one page for each group of public names, made from signatures and docstrings.

Docstrings are Markdown, as `help()` shows them. Here each becomes the body of a directive of Sphinx's Python domain, so
that names can be linked, searched and looked up from other projects. A public name in backticks becomes a link, one of
small letters where `rp.` stands before it; an equation of `equations.py` is set after the first paragraph.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

import robust_plugins as rp
from building.equations import EQUATIONS
from building.groups import GROUPS

PLACE = "reference"


def public() -> dict[str, Any]:
    """Every public name with what it is: those of `rp`, and those of `rp.explain`."""
    names = {name: getattr(rp, name) for name in rp.__all__}
    return names | {f"explain.{name}": getattr(rp.explain, name) for name in rp.explain.__all__}


def entry(name: str, value: Any) -> str:
    """The directive that documents one name."""
    if isinstance(value, ModuleType):
        return f"## rp.{name}\n\n{prose(value)}\n"
    if inspect.isclass(value):
        return _fence("class", _signature(name, value), _body(name, value), [_member(m) for m in members(value)])
    return _fence("function", _signature(name, value), _body(name, value))


def members(cls: type) -> Iterator[tuple[str, str, Any]]:
    """The public methods and properties that a class of ours defines itself or takes from a base without a page."""
    documented = {value for value in public().values() if inspect.isclass(value)} - {cls}
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    fields |= set(getattr(cls, "_fields", ()))
    for name, raw in sorted(inspect.getmembers_static(cls)):
        if (name.startswith("_") and name != "__call__") or name in fields:
            continue
        owner = next((base for base in cls.__mro__ if name in vars(base)), cls)
        if not owner.__module__.startswith("robust_plugins") or owner in documented:
            continue
        if isinstance(raw, property):
            yield "property", name, raw
        elif isinstance(raw, classmethod | staticmethod):
            yield "classmethod" if isinstance(raw, classmethod) else "staticmethod", name, getattr(cls, name)
        elif inspect.isfunction(raw) and (name != "__call__" or raw.__doc__):
            yield "method", name, raw


def prose(value: Any) -> str:
    """The docstring with links to the public names that it mentions."""
    text = inspect.getdoc(value) or ""
    if not isinstance(value, ModuleType) and inspect.isclass(value) and not vars(value).get("__doc__"):
        text = ""
    text = re.sub(r"(?m)^(?!- |\d+\. )(.*\S)\n(?=- )", r"\1\n\n", text)  # a list after a line needs a gap in Markdown
    return _examples(re.sub(r"(?<!`)`(rp\.)?([A-Za-z_.]+)`(?!`)", _link, text))


def _link(found: re.Match[str]) -> str:
    name = found[2]
    # A small name alone is a parameter's: `model` is an argument of many, and `rp.model` a function.
    meant = name in NAMES and (found[1] is not None or "." in name or name[0].isupper())
    return f"{{py:obj}}`rp.{name} <robust_plugins.{name}>`" if meant else found[0]


def _examples(text: str) -> str:
    """Fences around examples, which Markdown would take for quotations; indented code is code already."""
    lines, out, inside = text.splitlines(), [], False
    for line in lines:
        starts = line.startswith(">>>")
        if starts and not inside:
            out.append("```pycon")
            inside = True
        if inside and not line.strip():
            out.append("```")
            inside = False
        out.append(line)
    return "\n".join([*out, "```"] if inside else out)


def _body(name: str, value: Any) -> str:
    text = prose(value)
    equation = EQUATIONS.get(name)
    if equation is None:
        return text
    first, gap, rest = text.partition("\n\n")
    return f"{first}\n\n$$\n{equation}\n$$\n{gap}{rest}"


def _signature(name: str, value: Any) -> str:
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    if inspect.isclass(value) and (issubclass(value, Exception) or "names" in found.parameters):  # an enumeration
        return name
    parameters = [p.replace(annotation=_Text(p.annotation), default=_shown(p.default))
                  for p in found.parameters.values() if p.name not in ("self", "cls")]  # fmt: skip
    returned = inspect.Signature.empty if inspect.isclass(value) else _Text(found.return_annotation)
    return name + str(inspect.Signature(parameters, return_annotation=returned)).replace("\n", " ")


class _Text:
    """An annotation as it was written, for `inspect.Signature` to print."""

    def __new__(cls, annotation: Any) -> Any:
        if annotation is inspect.Parameter.empty:
            return annotation
        found = super().__new__(cls)
        found.text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        return found

    def __repr__(self) -> str:
        return re.sub(r"robust_plugins(\.\w+)*\.(?=[A-Z])", "", self.text)


def _shown(default: Any) -> Any:
    """A default that can be written; of a factory there is only that it is one."""
    return default if default is inspect.Parameter.empty or repr(default)[:1] != "<" else ...


def _member(member: tuple[str, str, Any]) -> str:
    kind, name, value = member
    if kind == "property":
        return _fence("property", name, prose(value), level=3)
    return _fence("method", _signature(name, value), prose(value), level=3, option=kind if kind != "method" else "")


def _fence(kind: str, signature: str, *bodies: Any, level: int = 4, option: str = "") -> str:
    ticks = ":" * (level + 2)
    inner = "\n\n".join(part for body in bodies for part in ([body] if isinstance(body, str) else body))
    module = ":module: robust_plugins\n" if level == 4 else ""
    flag = f":{option}:\n" if option else ""
    return f"{ticks}{{py:{kind}}} {signature}\n{module}{flag}\n{inner}\n{ticks}\n"


def write(folder: Path) -> None:
    """Writes the pages into the folder."""
    folder.mkdir(exist_ok=True)
    names = public()
    missing = set(names) - {name for _, _, group in GROUPS for name in group}
    if missing:
        raise ValueError(f"docs/building/groups.py has no place for {sorted(missing)}")
    rows = []
    for slug, title, group in GROUPS:
        body = "\n".join(entry(name, names[name]) for name in group)
        _update(folder / f"{slug}.md", f"# {title}\n\n{body}")
        listed = ", ".join(f"{{py:obj}}`~robust_plugins.{name}`" for name in group if name != "explain")
        rows.append(f"| [{title}]({slug}.md) | {listed} |")
    contents = "\n".join(slug for slug, _, _ in GROUPS)
    table = "\n".join(rows)
    _update(
        folder / "index.md",
        "# Reference\n\nEvery public name, with what `help()` says of it. All are in `robust_plugins`, or `rp`.\n\n"
        f"| about | names |\n|---|---|\n{table}\n\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n",
    )


def _update(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # Sphinx reads only what is newer
        path.write_text(text, encoding="utf-8")


NAMES = set(public())


def setup(app: Sphinx) -> dict[str, bool]:
    """Writes the pages before Sphinx looks for them."""
    app.connect("config-inited", lambda app, _: write(Path(app.srcdir) / PLACE))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
