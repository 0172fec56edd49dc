"""Every setting of `aift-ray doctor`, declared once."""

from __future__ import annotations

from typing import ClassVar

from aift_ray.config.section import Settings, setting


class DoctorConfig(Settings):
    """What is looked at, and how it is told."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {"as_json": "json"}

    storage: list[str] = setting(
        [], "folders or URIs (s3://...) that every node must see and write; may be given again"
    )
    bench: bool = setting(
        False, "measure matrix products, memory and host transfer, and store the results for plans"
    )
    as_json: bool = setting(False, "print JSON, for scripts")
