"""Looks at this machine, or at all nodes of a cluster, and tells what to mend."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.text import Text

from aift_ray.config import DoctorConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.planning.measured_rates import Rates, keep
from aift_ray.ray_backend import cluster
from aift_ray.ray_backend.node_probe import Probe
from aift_ray.runs import terminal, worker_env
from aift_ray.utils.diagnostics import Finding, of_clocks, of_exchange, of_machine, of_versions
from aift_ray.utils.filesystems import filesystem
from aift_ray.utils.machine import Machine

# seconds that a node may take to answer; the whole shall take less than 30
_PATIENCE = 20.0
# seconds that the GPUs of a machine may take to exchange data, their processes' start included
_EXCHANGE = 60.0
# where this project's commands listen unless told otherwise
_PORTS = {8000: "aift-ray serve", 8265: "Ray's dashboard", 6379: "ray start --head"}
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}

# asks a node's probe something by name; the call of what is returned waits for the answer, for 20 s
# or as many as it is given, and is None where there was none in time
Ask = Callable[..., Callable[..., Any]]


@dataclass(frozen=True)
class Node:
    """A node of the cluster, or this machine.

    Attributes:
        computes: whether workers run there.
    """

    name: str
    address: str
    ask: Ask
    computes: bool


def run(config: DoctorConfig, dry_run: bool) -> int:
    """Look, and print what was found; 1 where something is to be mended, else 0.

    Args:
        dry_run: look at this machine alone, and write nothing.

    Raises:
        ConfigError: a storage place can't be understood.
    """
    problems: list[Problem] = []
    for place in config.storage:
        try:
            filesystem(place, "storage")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    if dry_run:
        config = config.model_copy(update={"storage": [], "bench": False})
    machines, findings = _looked(config, alone=dry_run)
    well = not any(f.level == "problem" for f in findings)
    _tell(config.as_json, machines, findings, well)
    return 0 if well else 1


def _looked(config: DoctorConfig, alone: bool) -> tuple[list[Machine], list[Finding]]:
    """What was found on all nodes; on this machine where there is no cluster."""
    if alone or "RAY_ADDRESS" not in os.environ:
        return _look([_here()], config)
    try:
        with cluster.cluster():
            return _look(_nodes(), config)
    except ConfigError as error:
        machines, findings = _look([_here()], config)
        found = [
            Finding("", "ray", "problem", f"{each.where} {each.what}", each.remedy)
            for each in error.problems
        ]
        return machines, findings + found


def _here() -> Node:
    probe = Probe()
    return Node(
        "here", "127.0.0.1", lambda name, *given: lambda *_: getattr(probe, name)(*given), True
    )


def _nodes() -> list[Node]:
    """The living nodes of the cluster, each with an actor on it."""
    probe: Any = ray.remote(Probe)
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            actor = probe.options(
                num_cpus=0,
                scheduling_strategy=there,
                runtime_env={"env_vars": worker_env.environment()},
            ).remote()
            computes = any(node["Resources"].get(kind) for kind in ("CPU", "GPU"))
            name, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
            nodes.append(Node(name, address, _asking(actor), computes))
    return nodes


def _asking(actor: object) -> Ask:
    def ask(method: str, *arguments: object) -> Callable[[], Any]:
        reference = getattr(actor, method).remote(*arguments)

        def answer(patience: float = _PATIENCE) -> Any:
            try:
                return ray.get(reference, timeout=patience)
            except ray.exceptions.RayError:
                return None

        return answer

    return ask


def _look(nodes: list[Node], config: DoctorConfig) -> tuple[list[Machine], list[Finding]]:
    asked = [(node, node.ask("machine")) for node in nodes]
    machines, findings, living = [], list[Finding](), []
    for node, answer in asked:
        machine = answer()
        if machine is None:
            remedy = "see its logs in /tmp/ray/session_latest/logs, or restart it"
            what = f"no answer within {_PATIENCE:.0f} s"
            findings.append(Finding(node.name, "ray", "problem", what, remedy))
            continue
        machines.append(machine)
        living.append(node)
        findings += of_machine(machine, node.computes)
    findings += _exchange(living, machines)
    if machines:
        findings += of_versions(machines)
    findings += _network(living)
    findings += of_clocks([(node.name, *_offset(node)) for node in living])
    for place in config.storage:
        findings += _storage(living, place)
    if config.bench:
        findings += _bench(living, machines)
    return machines, findings


def _exchange(nodes: list[Node], machines: list[Machine]) -> Iterator[Finding]:
    """Whether the GPUs of each machine exchange data."""
    several = [
        (node, len(machine.gpus))
        for node, machine in zip(nodes, machines, strict=True)
        if len(machine.gpus) > 1 and machine.nccl
    ]
    asked = [(node, gpus, node.ask("exchange", gpus, _EXCHANGE)) for node, gpus in several]
    for node, gpus, answer in asked:
        # twice: with peer-to-peer and without
        why = answer(2 * _EXCHANGE + _PATIENCE)
        yield of_exchange(node.name, gpus, why)


def _bench(nodes: list[Node], machines: list[Machine]) -> Iterator[Finding]:
    """What the devices of each node reach; the slowest is kept for plans."""
    found: list[Rates] = []
    # in turn: the processes of one machine would disturb each other
    for node, machine in zip(nodes, machines, strict=True):
        rates = node.ask("bench", len(machine.gpus))(_PATIENCE * max(1, len(machine.gpus)))
        if rates is None:
            yield Finding(node.name, "bench", "note", "no answer in time", "try again without load")
            continue
        found += rates
        for each in rates:
            yield Finding(node.name, "bench", "ok", _told(each))
    if found:
        slowest = min(found, key=lambda each: (each.host is None, each.tflops["bf16"]))
        file = keep(slowest)
        yield Finding(nodes[0].name, "bench", "ok", f"kept in {file}: aift-ray plan --gpu measured")


def _told(rates: Rates) -> str:
    products = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.tflops.items())
    host = f", {rates.host:.3g} GB/s from the host" if rates.host else ""
    return f"{rates.name}: TFLOPS {products}; memory {rates.bandwidth:.3g} GB/s{host}"


def _offset(node: Node) -> tuple[float, float]:
    """Seconds that a node's clock is ahead, and how far that may be wrong."""
    before = time.time()
    there = node.ask("now")()
    after = time.time()
    middle = (before + after) / 2
    return (middle if there is None else there) - middle, (after - before) / 2


def _network(nodes: list[Node]) -> Iterator[Finding]:
    """Whether every node reaches every other on a port of the system's choice."""
    if len(nodes) < 2:
        for node in nodes:
            for port in node.ask("taken", list(_PORTS))() or ():
                what = f"port {port} is in use, where {_PORTS[port]} listens by default"
                yield Finding(
                    node.name, "ports", "note", what, "give another port where it is yours"
                )
        return
    ports = [node.ask("listen") for node in nodes]
    addresses = [(node.address, port()) for node, port in zip(nodes, ports, strict=True)]
    asked = [(node, node.ask("unreachable", addresses)) for node in nodes]
    for node, answer in asked:
        missing = answer() or []
        for address in missing:
            remedy = "let all TCP ports through between the nodes; check names and firewalls"
            yield Finding(node.name, "network", "problem", f"does not reach {address}", remedy)
        if not missing:
            yield Finding(node.name, "network", "ok", f"reaches {len(nodes)} nodes")


def _storage(nodes: list[Node], place: str) -> Iterator[Finding]:
    """Whether every node writes to `place`, and sees what the others have written there."""
    names = [f".aift-doctor-{secrets.token_hex(6)}" for _ in nodes]
    writing = [node.ask("write", place, name) for node, name in zip(nodes, names, strict=True)]
    wrong = [answer() for answer in writing]
    written = [name for name, why in zip(names, wrong, strict=True) if why == ""]
    looking = [node.ask("unseen", place, written) for node in nodes]
    for node, why, answer in zip(nodes, wrong, looking, strict=True):
        unseen = answer()
        if why != "":
            remedy = "give it to the user that runs Ray (uid 1000 in the images), or mend the mount"
            text = f"{place} can't be written: {why or 'no answer'}"
            yield Finding(node.name, "storage", "problem", text, remedy)
        elif unseen:
            remedy = "mount the same folder (NFS) on all nodes, or use s3://"
            what = f"{place} is another folder than on {len(unseen)} of the nodes"
            yield Finding(node.name, "storage", "problem", what, remedy)
        else:
            yield Finding(node.name, "storage", "ok", f"{place} is written and seen")
    for node, name in zip(nodes, names, strict=True):
        node.ask("remove", place, name)()


def _tell(as_json: bool, machines: list[Machine], findings: list[Finding], well: bool) -> None:
    if as_json:
        told = {
            "well": well,
            "machines": [asdict(machine) for machine in machines],
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(told, ensure_ascii=False, indent=1))
        return
    for finding in findings:
        place = f"{finding.node or 'all nodes'}  {finding.check}"
        level = (f"{finding.level:8}", _STYLES[finding.level])
        terminal.console.print(Text.assemble(level, f"{place}: {finding.what}"))
        if finding.remedy:
            terminal.console.print(f"{'':8}  {finding.remedy}", style="dim", markup=False)
    number = sum(f.level == "problem" for f in findings)
    terminal.console.print("all well" if well else f"{number} to mend", style="bold")
