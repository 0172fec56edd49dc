"""The forward pass of one module by another function, read from torch 2.13.0.

A module calls its attribute `forward`, whoever has set it; torch does not promise that. Missing:
hooks change what a forward pass takes and gives, and can't do without it. A module of another
class in its place (`set_submodule`) has another name in `config.json`, and none of the hooks of
shards and of recomputation; `Module.compile` compiles those hooks, and evaluation, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Have `module` compute `forward`, between its hooks."""
    # an attribute of the instance hides the method of its class
    module.__dict__["forward"] = forward


def is_replaced(module: nn.Module) -> bool:
    """Whether something else than the forward of its class is computed."""
    return "forward" in vars(module)


def restore_forward(module: nn.Module) -> None:
    """Have `module` compute the forward of its class."""
    module.__dict__.pop("forward", None)
