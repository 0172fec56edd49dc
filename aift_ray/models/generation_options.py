"""How the tokens of an answer are chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aift_ray.errors import ConfigError, Problem

# what `generate` gets from the prompt, or would return in another form
_TAKEN = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "return_dict_in_generate")


@dataclass(frozen=True)
class GenerationOptions:
    """The sampling options of `JapaneseModel.generate_japanese`, which describes them."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    do_sample: bool

    def checked(self, further: dict[str, Any]) -> GenerationOptions:
        """The same options.

        Args:
            further: what else is meant for `generate`.

        Raises:
            ConfigError: every one that is out of range or can't be given.
        """
        rules = {
            "max_new_tokens": (_integer(self.max_new_tokens, 1), "a whole number from 1"),
            "temperature": (_within(self.temperature, 0, 100), "a number from 0"),
            "top_p": (_within(self.top_p, 0, 1) and self.top_p > 0, "a number above 0, at most 1"),
            "top_k": (_integer(self.top_k, 0), "a whole number from 0 (0: all tokens)"),
            "do_sample": (isinstance(self.do_sample, bool), "True or False"),
        }
        problems = [
            Problem(name, f"{getattr(self, name)!r} is not allowed: give {allowed}")
            for name, (right, allowed) in rules.items()
            if not right
        ]
        problems += _taken(further)
        if problems:
            raise ConfigError(problems)
        return self

    def options(self, room: int) -> dict[str, Any]:
        """As `generate` takes them; at most `room` new tokens."""
        length = {"max_new_tokens": min(self.max_new_tokens, room)}
        if not self.do_sample or self.temperature == 0:
            # its own defaults: what the model's generation_config.json says must not act
            return length | {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
        return length | {
            "do_sample": True,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "top_k": self.top_k,
        }


def _taken(further: dict[str, Any]) -> Iterable[Problem]:
    for name in _TAKEN:
        if name in further:
            yield Problem(name, "is made by generate_japanese", "leave it out")
    if further.get("num_return_sequences", 1) != 1:
        yield Problem("num_return_sequences", "one text is returned", "call it several times")


def _integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _within(value: object, least: float, most: float) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and least <= float(value) <= most  # type: ignore[arg-type]


def token_ids(ids: int | Iterable[int] | None) -> list[int]:
    """The ids of an option that is one id, several or none."""
    return [ids] if isinstance(ids, int) else list(ids or [])
