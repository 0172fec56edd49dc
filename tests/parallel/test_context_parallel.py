"""Rows divided over workers: who has which tokens, what they attend, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aift_ray.commandline import validated
from aift_ray.data.collate import MicroBatch, collate
from aift_ray.data.context_share import own_share
from aift_ray.engine.loss import LossModule, documents
from aift_ray.errors import ConfigError, ModelError
from aift_ray.models.attention.document_attention import NAME, document_attention, register
from aift_ray.models.attention.packed_documents import packed
from aift_ray.models.families import family_support
from aift_ray.models.families.family_support import Support
from aift_ray.models.families.tiny_model import random_model, shrunk
from aift_ray.parallel.context_parallel import ContextGroup
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import make_tiny_mixture, write_rows
from tests.data.test_collate import Rows
from tests.families import configuration
from tests.helpers.runs import whole_on_workers
from tests.helpers.tiny_families import make_hybrid
from tests.helpers.whole_runs import losses, run

Configure = Callable[..., Any]
LAYOUTS = [[40], [2, 7, 1, 30, 3], [1], [9, 9], [0, 0, 0, 25]]


def shares(indices: list[int], size: int) -> tuple[MicroBatch, list[MicroBatch]]:
    whole = collate(Rows(), indices, False)
    return whole, [own_share(whole, rank, size, 0) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("indices", LAYOUTS)
def test_each_token_and_label_is_one_workers(indices: list[int], size: int) -> None:
    whole, parts = shares(indices, size)
    assert len({part.input_ids.shape for part in parts}) == 1, "all have as many tokens"
    assert {part.weight for part in parts} == {len(whole.labels)}
    every = torch.cat([places(part) for part in parts])
    assert sorted(every.tolist()) == list(range(len(every)))
    order = every.argsort()
    for name in ("input_ids", "position_ids"):
        row = torch.cat([getattr(part, name)[0] for part in parts])[order]
        assert torch.equal(row[: whole.input_ids.shape[1]], getattr(whole, name)[0])
    found = [
        (int(places(part)[at]), int(label))
        for part in parts
        for at, label in zip(part.label_positions, part.labels, strict=True)
    ]
    assert sorted(found) == list(
        zip(whole.label_positions.tolist(), whole.labels.tolist(), strict=True)
    )
    lengths = torch.cat([part.document_lengths()[0] for part in parts])[order]
    assert torch.equal(lengths[: whole.input_ids.shape[1]], whole.document_lengths()[0])


def places(part: MicroBatch) -> torch.Tensor:
    """The places in the row of the tokens of a share."""
    assert part.context
    return torch.cat([torch.arange(chunk.start, chunk.end) for chunk in part.context.chunks])


def test_workers_have_as_much_to_attend() -> None:
    _, parts = shares([2000], 4)
    work = [int((part.position_ids + 1).sum()) for part in parts]
    assert max(work) < 1.02 * min(work)


class Whole:
    """Stands for the workers of a group: their keys and values are those of the whole row."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.key, self.value = key, value

    def gather(self, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key, self.value


@pytest.mark.parametrize(
    "how", [{}, {"sliding_window": 5}, {"softcap": 3.0}, {"s_aux": torch.tensor([0.5, 1, 2, 3])}]
)
@pytest.mark.parametrize("indices", LAYOUTS)
def test_shares_of_a_row_attend_what_the_row_attends(
    indices: list[int], how: dict[str, Any]
) -> None:
    whole, parts = shares(indices, 2)
    tokens = 2 * parts[0].input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, tokens, 16, generator=generator)
    key, value = (torch.randn(1, 2, tokens, n, generator=generator) for n in (16, 24))
    filled = replace(whole, input_ids=torch.zeros(1, tokens), cu_seqlens=parts[0].cu_seqlens)
    # of a layer with a window the mask tells that there is one
    mask = torch.full((1, 1, 1, 1), 5) if "sliding_window" in how else None
    module = torch.nn.Module()
    with packed(documents(filled)):
        expected, _ = document_attention(module, query, key, value, mask, **how)
    group: Any = Whole(key, value)
    for part in parts:
        own = places(part)
        with packed(documents(part, group)):
            found, _ = document_attention(
                module, query[:, :, own], key[:, :, own], value[:, :, own], mask, **how
            )
        torch.testing.assert_close(found, expected[:, own], rtol=1e-5, atol=1e-6)


def test_what_can_not_be_divided_is_refused(configure: Configure, tmp_path: Path) -> None:
    divided = {"strategy": "pipeline", "context_parallel_size": 2, "offload": True}
    with pytest.raises(ConfigError) as caught:
        validated(
            {
                "objective": "dpo",
                "parallel": divided,
                "data": {"packing": "false"},
                "training": {"compile": True},
                "ray": {"num_workers": "2:4"},
            }
        )
    said = str(caught.value)
    for what in ("not pipeline", "host memory", "training.compile", "is dpo", "pads them"):
        assert what in said
    assert "is elastic" in said
    with pytest.raises(ConfigError, match=r"3 is not a multiple of parallel.context_parallel_size"):
        prepare(configure(parallel__context_parallel_size=2), tmp_path, 3, False, None)
    refused = {
        "so rows are padded": make_hybrid(tmp_path / "hybrid"),
        "auxiliary loss of its routers": make_tiny_mixture(
            tmp_path / "mixture", output_router_logits=True
        ),
    }
    for what, folder in refused.items():
        config = configure(model=str(folder), parallel__context_parallel_size=2)
        with pytest.raises(ModelError, match=what):
            prepare(config, tmp_path, 2, False, None)


def test_a_worker_needs_the_memory_of_its_share(configure: Configure, tmp_path: Path) -> None:
    found = {}
    for size in (1, 2):
        config = configure(parallel__context_parallel_size=size)
        found[size] = prepare(config, tmp_path, 2, False, None)
    # two workers see eight rows together, or eight each
    assert {size: run.job.global_batch for size, run in found.items()} == {1: 16, 2: 8}
    whole, share = found[1].memory, found[2].memory
    assert whole
    assert share
    assert share.weights == whole.weights
    # keys and values of the whole row come on top
    assert whole.activations / 2 < share.activations < whole.activations * 0.75


def _families(rank: int, folder: str, names: list[str]) -> None:
    """A worker of two: relative differences of loss and gradients of each family."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    register()
    group = ContextGroup(Group(rank, 2, torch.device("cpu"), context_parallel_size=2))
    whole, parts = shares([20, 7, 1, 13, 16], 2)
    # tiny vocabularies have few ids
    whole, part = (
        replace(each, input_ids=each.input_ids * 7 % 50) for each in (whole, parts[rank])
    )
    found = {}
    for name in names:
        config = configuration(name)
        assert config is not None
        torch.manual_seed(0)
        module = LossModule(random_model(shrunk(config), NAME)).train()
        gradients = []
        for context, batch in ((None, whole), (group, part)):
            module.context = context
            module.zero_grad()
            loss = module(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            weights = [p.grad for p in module.parameters() if p.grad is not None]
            for gradient in weights if context else ():
                dist.all_reduce(gradient)
            gradients.append(torch.cat([loss.detach().reshape(1), *map(torch.flatten, weights)]))
        one, two = gradients
        apart = float((one - two).norm() / one.norm())
        found[name] = float((one - two)[0].abs() / one[0]), apart
    if rank == 0:
        torch.save(found, f"{folder}/found")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_packed_family_computes_what_one_process_computes(tmp_path: Path) -> None:
    supports = {name: found for name, (_, found) in family_support.table().items()}
    names = [n for n, found in supports.items() if isinstance(found, Support) and found.packed]
    assert len(names) > 100
    mp.spawn(_families, (str(tmp_path), names), nprocs=2)  # type: ignore[no-untyped-call]
    found = torch.load(tmp_path / "found")
    assert {name: values for name, values in found.items() if max(values) > 2e-5} == {}


@pytest.mark.slow
def test_replicas_of_two_workers_train_what_one_process_trains(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    cases = [("context 2 x 2", method, "fp32", "concat") for method in ("full", "lora")]
    found = parity.compare(cases, tmp_path, tiny_model, rows)
    assert {case: values for case, values in found.items() if max(values) > 1e-5} == {}


@pytest.mark.slow
def test_a_divided_run_is_evaluated_and_goes_on_bit_for_bit(
    configure: Configure, tmp_path: Path
) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", 3, 100)
    sets = [
        {"files": [str(write_rows(tmp_path / f"{name}.jsonl", 12, offset))], "epochs": 1.0}
        for name, offset in (("one", 0), ("two", 50))
    ]
    common = {
        "method": "lora",
        "lora__lora_dropout": 0.2,
        "training__neftune_noise_alpha": 5.0,
        "training__max_steps": 6,
        "training__save_steps": 3,
        "training__eval_steps": 3,
        "training__lr_scheduler": "constant",
        "data__train_files": [],
        "data__mixture": sets,
        "data__eval_files": [str(held_out)],
        "parallel__context_parallel_size": 2,
        "ray__num_workers": 2,
    }
    still = common | {"lora__lora_dropout": 0.0, "training__neftune_noise_alpha": 0.0}
    step = tmp_path / "whole" / "checkpoints" / "step-3"
    runs = {"whole": configure(**common), "still": configure(**still)}
    whole_on_workers(runs, tmp_path)
    whole_on_workers({"after": configure(**common, resume=str(step))}, tmp_path)
    assert losses(tmp_path / "after") == losses(tmp_path / "whole")[3:]
    alone = {n: v for n, v in still.items() if not n.startswith(("parallel", "ray"))}
    run(configure(**alone), tmp_path / "alone")
    for one, two in zip(*(_lines(tmp_path / name) for name in ("still", "alone")), strict=True):
        for name in one.keys() & {"loss", "grad_norm", "eval_loss"}:
            assert one[name] == pytest.approx(two[name], rel=1e-4), name
        sets = one.get("loss_by_set") or {}
        assert sets == pytest.approx(two.get("loss_by_set") or {}, rel=1e-4)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
