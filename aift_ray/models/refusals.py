"""How a family that is refused is told: its name, the feature, what would work, a near model."""

from __future__ import annotations

from collections.abc import Callable

from aift_ray.errors import Problem
from aift_ray.models.catalog import of_family

NO_LAYOUT = "no packing, strategy or method computes it"


def refusal(
    family: str,
    what: str,
    layout: str | None,
    fits: Callable[[str], bool] | None = None,
    field: str | None = None,
) -> Problem:
    """The problem of a model family that lacks something.

    Args:
        family: its model type.
        what: the feature that is missing, and why.
        layout: settings with which a model of the family works, as they are typed; None: none do.
        fits: whether a model of a type has the feature; None: of every catalogued family.
        field: the setting that asks for the feature; None: the model itself does.
    """
    name = f"model family {family}"
    other = of_family(family, fits)
    remedy = f"{layout or NO_LAYOUT}; or choose another model, such as {other}"
    if field is None:
        return Problem(name, what, remedy)
    return Problem(field, f"{name}: {what}", remedy)
