"""The table of packages in docs/architecture.md: `python -m tests.architecture` writes it anew."""

from __future__ import annotations

import ast
import re

import grimp

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- imports: python -m tests.architecture -->\n", "<!-- end -->\n"
NAME = "aift_ray"


def job(package: str) -> str:
    """The first sentence of a package's or module's docstring."""
    path = ROOT / NAME / package / "__init__.py"
    path = path if path.is_file() else ROOT / NAME / f"{package}.py"
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()))[0].replace("|", "\\|")


def imports() -> dict[str, set[str]]:
    """What each package, and each module beside them, imports of the others."""
    graph = grimp.build_graph(NAME, cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in graph.modules - {NAME}:
        own = module.split(".")[1]
        others = {
            name.split(".")[1]
            for name in graph.find_modules_directly_imported_by(module)
            if name != NAME
        }
        found.setdefault(own, set()).update(others - {own})
    return found


def table() -> str:
    """Packages from the top of the import order to the bottom; the verbs are one row."""
    found = imports()
    folders = {name for name in found if (ROOT / NAME / name).is_dir()}
    verbs = {name for name in found if name not in folders} - {"commandline", "errors"}
    rows = {name: (f"`{name}/`", job(name), found[name]) for name in folders}
    for name in ("commandline", "errors"):
        rows[name] = (f"`{name}.py`", job(name), found[name])
    order: list[str] = []
    left = set(rows)
    while left:
        # what only rows above import comes next
        free = sorted(n for n in left if not any(n in found[m] for m in left if m != n))
        assert free, f"a cycle among {sorted(left)}"
        order += free
        left -= set(free)
    lines = ["| package | job | imports |", "|---|---|---|"]
    of_verbs = set().union(*(found[name] for name in verbs)) - verbs
    names = ", ".join(f"`{name}.py`" for name in sorted(verbs))
    lines.append(f"| {names} | verbs: parse, one call, exit status | {listed(of_verbs, order)} |")
    for name in order:
        head, text, others = rows[name]
        lines.append(f"| {head} | {text} | {listed(others, order)} |")
    return "\n".join(lines) + "\n"


def listed(names: set[str], order: list[str]) -> str:
    """Names in the order of the table."""
    return ", ".join(f"`{name}`" for name in order if name in names) or "–"


def written(text: str) -> str:
    """The page with the table of the present imports."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
