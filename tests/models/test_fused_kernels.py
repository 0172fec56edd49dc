"""Liger's kernels against transformers' code, in Triton's interpreter; what is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama

from aift_ray.commandline import validated
from aift_ray.data.collate import collate
from aift_ray.engine.build import build
from aift_ray.engine.loss import LossModule
from aift_ray.errors import ConfigError, ModelError
from aift_ray.models.attention.document_attention import NAME, register
from aift_ray.models.families import family_support
from aift_ray.models.families.family_support import Support
from aift_ray.models.families.tiny_model import random_model, shrunk
from aift_ray.models.fused_kernels import fusable, fuse
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare
from aift_ray.utils.exit_status import guarded
from tests import parity
from tests.conftest import ROOT
from tests.data.test_collate import Rows
from tests.families import configuration
from tests.helpers import liger
from tests.helpers.runs import stepped
from tests.helpers.tiny_families import make

Configure = Callable[..., Any]
interpreted = pytest.mark.skipif(not liger.INTERPRETED, reason=liger.MISSING)
NORM, MLP, ROTARY = "norm", "feed-forward", "rotary embedding"
# of four blocks, and six
FUSED = {
    "llama": {NORM: 9, MLP: 4, ROTARY: 4},
    "mistral": {NORM: 9, MLP: 4, ROTARY: 4},
    "qwen2": {NORM: 9, MLP: 4, ROTARY: 4},
    "qwen3": {NORM: 17, MLP: 4, ROTARY: 4},
    "gemma2": {NORM: 17, MLP: 4, ROTARY: 4},
    "gemma3_text": {NORM: 37, MLP: 6, ROTARY: 6},
    # its norms multiply in another order, and its queries and keys are rotated so
    "olmo2": {MLP: 4},
    # its norms have a bias, and so on
    "gpt_neox": {},
}


def tiny(kind: str) -> torch.nn.Module:
    config = configuration(kind)
    assert config is not None
    torch.manual_seed(0)
    return random_model(shrunk(config), NAME)


def gradients(module: LossModule) -> torch.Tensor:
    """Loss and gradients of a packed row of a few documents."""
    batch = collate(Rows(), [2, 1, 3], False)
    # tiny vocabularies have few ids
    batch = replace(batch, input_ids=batch.input_ids * 7 % 50)
    module.zero_grad()
    loss = module(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    weights = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat([loss.detach().reshape(1), *weights])


def apart(kind: str) -> float:
    """How far fused kernels take loss and gradients of a family from its own."""
    liger.interpret()
    module = LossModule(tiny(kind)).train()
    plain = gradients(module)
    fuse(module.model)
    fused = gradients(module)
    return float((plain - fused).norm() / plain.norm())


@pytest.mark.parametrize("kind", FUSED)
def test_layers_are_replaced_that_compute_what_llama_or_gemma_compute(kind: str) -> None:
    assert fusable(tiny(kind)) == FUSED[kind]


@interpreted
@pytest.mark.parametrize("kind", [kind for kind, layers in FUSED.items() if layers])
def test_fused_layers_have_the_losses_and_gradients_of_their_own_code(kind: str) -> None:
    register()
    assert apart(kind) < 1e-5


@interpreted
@pytest.mark.slow
def test_every_family_with_fused_layers_computes_what_it_did() -> None:
    register()
    supports = {name: found for name, (_, found) in family_support.table().items()}
    names = [n for n, found in supports.items() if isinstance(found, Support) and found.packed]
    fused = [name for name in names if fusable(tiny(name))]
    assert len(fused) > 30
    assert {name: found for name in fused if (found := apart(name)) > 1e-5} == {}


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write, and the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.detach.default:
            every = tree_leaves((args, kwargs, found))
            tensors = [each for each in every if isinstance(each, torch.Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in tensors)
            self.operations += 1
        return found


def moved(operation: Callable[..., Any], *inputs: torch.Tensor) -> tuple[float, float, int]:
    """Bytes a number of the output, forward and backward; operations of two forward passes."""
    for each in inputs:
        each.requires_grad_()
    with Moved() as forward:
        made = operation(*inputs)
    outputs = made if isinstance(made, tuple) else (made,)
    given = [torch.ones_like(each) for each in outputs]
    with Moved() as backward:
        torch.autograd.grad(outputs, inputs, given)
    numbers = sum(each.numel() for each in outputs)
    operations = 2 * forward.operations + backward.operations
    return forward.bytes / numbers, backward.bytes / numbers, operations


def test_transformers_moves_the_bytes_that_the_page_counts() -> None:
    """docs/a5000.md: of a block of an 8B model, in bf16 with frozen weights."""
    norm = modeling_llama.LlamaRMSNorm(4096).bfloat16().requires_grad_(False)
    angle = torch.ones(1, 8, 128, dtype=torch.bfloat16)

    def rotate(query: torch.Tensor, key: torch.Tensor) -> Any:
        turned = query.transpose(1, 2), key.transpose(1, 2)
        return modeling_llama.apply_rotary_pos_emb(*turned, angle, angle)

    def half(*shape: int) -> torch.Tensor:
        return torch.ones(1, 8, *shape, dtype=torch.bfloat16)

    gate = ACT2FN["silu"]
    found = {
        "RMSNorm": moved(norm, half(4096)),
        "SwiGLU": moved(lambda one, other: gate(one) * other, half(14336), half(14336)),
        "rotary embeddings": moved(rotate, half(32, 128), half(8, 128)),
    }
    page = (ROOT / "docs" / "a5000.md").read_text("utf-8")
    numbers = {"RMSNorm": 2, "SwiGLU": 1, "rotary embeddings": 1}
    operations = sum(numbers[name] * each[2] for name, each in found.items())
    assert operations == pytest.approx(100, abs=10)
    for name, (forward, backward, _) in found.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        written = [int(cell) for cell in row.split("|")[3:5]]
        assert written == [round(forward), round(backward)], name


def test_evaluation_runs_the_code_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").eval()
    ids = torch.tensor([[5, 6, 7]])
    plain = model(input_ids=ids).logits
    fuse(model)
    assert torch.equal(model(input_ids=ids).logits, plain)
    # only this model is changed
    assert fusable(tiny("llama")) == FUSED["llama"]
    assert "forward" not in vars(tiny("llama").model.norm)


@interpreted
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_with_fused_kernels_trains_what_one_without_trains(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    liger.interpret()
    common = {
        "method": method,
        "training__precision": "fp32",
        "training__gradient_checkpointing": True,
        "training__max_steps": 1,
        "training__batch_size": 1,
        "training__gradient_accumulation_steps": 1,
        "lora__lora_dropout": 0.0,
    }
    curves = []
    for kernels in ("torch", "liger"):
        config = configure(training__kernels=kernels, **common)
        # as on a GPU: kernels are refused without one
        job = prepare(config, tmp_path / kernels, 1, True, None).job
        run = build(job, Group(0, 1, torch.device("cpu")))
        lines = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
        curves.append((lines, {n: p.detach() for n, p in run.module.named_parameters()}))
    assert max(parity.differences(*curves)) < 1e-5


def test_what_can_not_be_fused_is_refused(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        validated(
            {
                "training": {"kernels": "liger", "compile": True},
                "parallel": {"strategy": "tensor", "spill_to_cpu": True},
            }
        )
    for what in ("training.compile: fuses", "tensor splits them", "spill_to_cpu in the host"):
        assert what in str(caught.value)
    with pytest.raises(ConfigError, match=r"training\.kernels: liger needs GPUs"):
        prepare(configure(training__kernels="liger"), tmp_path, 1, False, None)
    neox = configure(model=str(make("gpt_neox", tmp_path / "neox")), training__kernels="liger")
    with pytest.raises(ModelError, match="model family gpt_neox: none of its layers"):
        prepare(neox, tmp_path, 1, True, None)


@pytest.mark.skipif(liger.INSTALLED, reason="liger-kernel is installed")
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from aift_ray import train

    argv = ["--train-file", "rows.jsonl", "--training.kernels", "liger"]
    assert guarded(train.run, [*argv, "--output-dir", str(tmp_path / "run")]) == 2
    assert "pip install 'aift-ray[liger]'" in capsys.readouterr().err
