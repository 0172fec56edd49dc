"""References of a JSON schema that lead back to themselves, so that no value can satisfy it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

Node = dict[str, Any]


class CycleError(ValueError):
    """A reference to what no finite value satisfies; its message is the reference."""


def check_references(schema: Node) -> None:
    """Find parts of a schema that no finite value satisfies.

    A part can be satisfied once all that it needs can be; whatever that does not reach is a cycle.

    Raises:
        CycleError: there is one.
        RecursionError: the schema is too deep.
    """
    nodes = {id(node): node for node in _nodes(schema)}
    needs = {key: list(_needs(schema, node)) for key, node in nodes.items()}
    dependents: dict[int, list[int]] = defaultdict(list)
    for key, groups in needs.items():
        for group in groups:
            for part in group:
                dependents[id(part)].append(key)
    fine: set[int] = set()
    queue = deque(reversed(nodes))
    while queue:
        key = queue.popleft()
        if key not in fine and all(any(id(p) in fine for p in group) for group in needs[key]):
            fine.add(key)
            queue.extend(dependents[key])
    endless = [node for key, node in nodes.items() if key not in fine]
    if endless:
        raise CycleError(next((node["$ref"] for node in endless if "$ref" in node), "#"))


def _nodes(part: Node | list[Any]) -> Iterator[Node]:
    if isinstance(part, dict):
        yield part
    for each in part.values() if isinstance(part, dict) else part:
        if isinstance(each, dict | list):
            yield from _nodes(each)


def _needs(root: Node, node: Node) -> Iterator[list[Node]]:
    """What a value of a part has to satisfy, too: of each group at least one."""
    target = _target(root, node.get("$ref"))
    if isinstance(target, dict):
        yield [target]
    for each in _listed(node.get("allOf")):
        if isinstance(each, dict):
            yield [each]
    for name in ("anyOf", "oneOf"):
        group = _listed(node.get(name))
        if group and all(isinstance(each, dict) for each in group):
            yield group
    properties = node.get("properties")
    for name in _listed(node.get("required")):
        if isinstance(properties, dict) and isinstance(name, str):
            found = properties.get(name)
            if isinstance(found, dict):
                yield [found]
    firsts, items = _listed(node.get("prefixItems")), node.get("items")
    least = _number(node.get("minItems"))
    for each in firsts[:least]:
        if isinstance(each, dict):
            yield [each]
    if least > len(firsts) and isinstance(items, dict):
        yield [items]
    yield from _of_some_property(node)


def _of_some_property(node: Node) -> Iterator[list[Node]]:
    """What an object that must not be empty needs: the value of one property or another."""
    if _number(node.get("minProperties")) < 1 or node.get("patternProperties"):
        return
    more = node.get("additionalProperties")
    named = node.get("properties")
    values = [*(named.values() if isinstance(named, dict) else ()), more]
    if all(isinstance(each, dict) for each in values):
        yield values


def _number(value: object) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _target(root: Node, reference: object) -> Any:
    """What a JSON pointer within the schema leads to; None where there is nothing."""
    if not isinstance(reference, str) or reference[:2] not in ("#", "#/"):
        return None
    found: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return found
