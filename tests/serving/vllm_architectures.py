"""Which architectures vLLM has a network for, and which of those take adapters.

    make vllm-families

reads vLLM's own registry in the environment of `make vllm-env` and writes
aift_ray/models/tables/vllm.csv. The sources are parsed, not imported: half of vLLM's modules can
be imported on GPUs alone, or beside packages for images that text does not need.
"""

from __future__ import annotations

import ast
import csv
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

from aift_ray.serving.engines.vllm.vllm_families import TABLE
from tests.serving.vllm_environment import folder

_MODELS = "vllm.model_executor.models"
# of the registry's dictionaries, those whose models write text
_TEXT = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
_LORA = "SupportsLoRA"


def packages() -> Path:
    """Where vLLM is installed.

    Raises:
        FileNotFoundError: it is not.
    """
    for found in folder().glob("lib/python*/site-packages"):
        if (found / "vllm").is_dir():
            return found
    raise FileNotFoundError("there is no vLLM: run make vllm-env")


@cache
def _parsed(root: Path, module: str) -> tuple[ast.Module, bool]:
    """The source of a module, and whether it is a package."""
    path = root.joinpath(*module.split("."))
    package = path.is_dir()
    file = path / "__init__.py" if package else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")), package


def registered(root: Path) -> dict[str, tuple[str, str]]:
    """{architecture: (module, class)} of the registry's networks that write text."""
    tree, _ = _parsed(root, f"{_MODELS}.registry")
    found: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names, value = [ast.unparse(target) for target in node.targets], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            names, value = [ast.unparse(node.target)], node.value
        else:
            continue
        if set(names) & set(_TEXT):
            for name, (module, kind, *_) in ast.literal_eval(value).items():
                whole = module if module.startswith("vllm.") else f"{_MODELS}.{module}"
                found[name] = whole, kind
    return found


@cache
def ancestors(root: Path, module: str, name: str) -> frozenset[str]:
    """The names of a class of vLLM and of all that it inherits from."""
    tree, package = _parsed(root, module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [ancestors(root, module, base) for base in _bases(node)]
            return frozenset({name}).union(*bases)
    for origin, own in _imported(tree, name, module if package else module.rpartition(".")[0]):
        return ancestors(root, origin, own)
    return frozenset({name})


def _bases(node: ast.ClassDef) -> Iterator[str]:
    for base in node.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base
        yield ast.unparse(plain).rpartition(".")[2]


def _imported(tree: ast.Module, name: str, package: str) -> Iterator[tuple[str, str]]:
    """The module of vLLM, and the name there, of what a module imports as `name`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        origin = resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            if (alias.asname or alias.name) == name and origin.startswith("vllm."):
                yield origin, alias.name


def rows(root: Path) -> list[dict[str, str]]:
    """The table's rows, sorted."""
    found = []
    for architecture, (module, name) in sorted(registered(root).items()):
        takes = _LORA in ancestors(root, module, name)
        found.append({"architecture": architecture, "adapters": "yes" if takes else "no"})
    return found


def main() -> int:
    """Write the table."""
    found = rows(packages())
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("architecture", "adapters"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    print(f"{len(found)} architectures of vLLM: {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
