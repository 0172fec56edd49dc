"""Private interfaces of pydantic, read from pydantic 2.14.4; for the type checker alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    # missing: a public name of the metaclass, without which a subclass of it can't be typed
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["ModelMetaclass"]
