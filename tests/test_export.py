"""`aift-ray export`: what it writes, and what it refuses before it writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aift_ray import export
from aift_ray.config import ExportConfig
from aift_ray.conversion import gguf_vocab, modelfile, pre_tokenizers
from aift_ray.conversion.gguf_families import FAMILIES
from aift_ray.conversion.gguf_tensors import paired
from aift_ray.models.catalog import CATALOG
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED, make_tiny_model
from tests.helpers import chat_templates
from tests.quantization.conftest import make_adapter

Refused = Callable[..., str]
NEAREST = ("--tokenizer", "nearest")


def some(values: Iterable[str], *quick: str) -> list[Any]:
    """Parameters of which the quick ones alone are part of make test."""
    return [pytest.param(v, marks=[] if v in quick else pytest.mark.slow) for v in values]


def run(*argv: object) -> int:
    return guarded(export.run, [str(part) for part in argv])


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command; it must refuse and write nothing. The message."""

    def call(*argv: object) -> str:
        output = [] if "--output" in argv else ["--output", tmp_path / "out.gguf"]
        assert run(*output, *argv) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert not (tmp_path / "out.gguf").exists()
        return message

    return call


def test_hf_is_a_plain_folder_with_the_logits_of_the_adapter(
    tiny_model: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    flags = ("--model", tiny_model, "--adapter", adapter, "--format", "hf")
    assert run(*flags, "--output", tmp_path / "out") == 0
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("日本の首都は", return_tensors="pt")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        ours = PeftModel.from_pretrained(base, adapter).eval()(ids.input_ids).logits
        assert torch.allclose(found(ids.input_ids).logits, ours, atol=1e-5)
    report = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert report["settings"]["adapter"] == str(adapter)
    assert run(*flags, "--output", tmp_path / "out") == 2
    assert run(*flags, "--output", tmp_path / "out", "--overwrite", "--dtype", "bf16") == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("outtype", some(["q4_0", "f16"], "q4_0"))
def test_the_weights_in_the_file_are_those_of_the_model(
    outtype: str, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.gguf"
    flags = ("--model", tiny_model, "--output", file, *NEAREST, "--outtype", outtype)
    assert run(*flags) == 0
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    stored = load_file(tiny_model / "model.safetensors")
    names = {"blk.1.ffn_down.weight": "mlp.down_proj", "blk.1.attn_q.weight": "self_attn.q_proj"}
    bound = {"f16": 5e-4, "q4_0": 0.13}[outtype]
    for name, own in names.items():
        values = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        ours = stored[f"model.layers.1.{own}.weight"]
        ours = paired(ours, 4) if "q_proj" in own else ours
        largest = float(ours.abs().max())
        assert np.abs(values.reshape(ours.shape) - ours.numpy()).max() <= bound * largest
    assert found["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    ends = "q8_0" if outtype == "q4_0" else outtype
    assert found["token_embd.weight"].tensor_type.name == ends.upper()


def test_the_file_carries_tokens_their_ends_and_the_template(
    tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.gguf"
    assert run("--model", tiny_model, "--output", file, *NEAREST) == 0
    fields = gguf.GGUFReader(file).fields
    template = (SHIPPED / "chat_template.jinja").read_text("utf-8")
    assert fields["tokenizer.chat_template"].contents() == template
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[fields["tokenizer.ggml.eos_token_id"].contents()] == "<|im_end|>"
    assert fields["tokenizer.ggml.token_type"].contents()[3] == gguf.TokenType.CONTROL
    made = file.with_suffix(".Modelfile").read_text("utf-8")
    assert made.startswith("FROM ./out.gguf\nTEMPLATE")
    assert 'PARAMETER stop "<|im_end|>"' in made
    assert run("--model", tiny_model, "--output", file, *NEAREST) == 2
    assert run("--model", tiny_model, "--output", file, *NEAREST, "--overwrite") == 0


def test_a_launched_command_writes_a_file(tiny_model: Path, tmp_path: Path) -> None:
    flags = ["--model", str(tiny_model), "--output", str(tmp_path / "a" / "b.gguf"), *NEAREST]
    command = [sys.executable, "-m", "aift_ray", "export", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 11 sample texts" in done.stdout
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b.Modelfile", "b.gguf"]


def test_an_architecture_that_does_not_map_names_those_that_do(
    refused: Refused, tmp_path: Path
) -> None:
    message = refused("--model", make_tiny_model(tmp_path / "model", "phi3"))
    assert "phi3" in message
    assert (
        "gemma, gemma2, gemma3_text, llama, mistral, qwen2, qwen3, qwen3_5_text, qwen3_moe"
        in message
    )
    assert "transformers loads its folder as it is" in message
    advised = "".join(message.split()).partition("suchas")[2]
    assert CATALOG[advised].architecture.model_type in FAMILIES


@pytest.mark.parametrize(
    ("numbers", "what"),
    [
        ({"hidden_act": "relu"}, "hidden_act is relu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type is dynamic",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 16,
                }
            },
            "yarn has settings of its own",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_named(
    numbers: dict[str, Any], what: str, refused: Refused, tmp_path: Path
) -> None:
    assert what in refused("--model", make_tiny_model(tmp_path / "model", **numbers))


def test_a_tokenizer_that_llama_cpp_has_not_is_counted_and_refused(refused: Refused) -> None:
    assert "of 11 sample texts" in refused("--dry-run")
    message = refused()
    assert "--tokenizer nearest" in message


def test_settings_and_names_are_told_at_once(refused: Refused, tmp_path: Path) -> None:
    message = refused("--format", "hf", "--outtype", "f16", "--merge-adapter", "false")
    for part in ("outtype: acts with gguf only", "neither is asked for", "needs an adapter"):
        assert part in message
    assert "does not end in .gguf" in refused("--output", tmp_path / "x.bin", *NEAREST)
    (tmp_path / "kept.gguf").write_text("mine", "utf-8")
    message = refused("--output", tmp_path / "kept.gguf", "--overwrite", *NEAREST)
    assert "is no GGUF file" in message
    assert "f16', 'bf16', 'q8_0'" in refused("--outtype", "q2_k")


def test_a_weight_that_the_type_can_not_hold_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    flags = ("--model", model, "--output", tmp_path / "out" / "m.gguf", *NEAREST)
    assert run(*flags, "--outtype", "f16") == 2
    assert "blk.0.ffn_up.weight: it holds values too large" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert run(*flags, "--outtype", "bf16") == 0


def definition(expression: str, **model: Any) -> dict[str, Any]:
    """The shipped tokenizer with another pre-tokenizer."""
    found: dict[str, Any] = json.loads((SHIPPED / "tokenizer.json").read_text("utf-8"))
    found["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = expression
    return found | {"model": found["model"] | model}


@pytest.mark.parametrize("name", some(pre_tokenizers.PRE_TOKENIZERS, "llama-bpe", "qwen2"))
def test_each_pre_tokenizer_is_told_from_the_others(name: str) -> None:
    expressions, ignore_merges = pre_tokenizers.PRE_TOKENIZERS[name]
    given = definition(expressions[0], ignore_merges=ignore_merges)
    split, level = given["pre_tokenizer"]["pretokenizers"]
    more = [split | {"pattern": {"Regex": each}} for each in expressions]
    given["pre_tokenizer"]["pretokenizers"] = [*more, level]
    match = pre_tokenizers.best(given)
    assert match.exact
    # the two differ in whole words that are tokens, which this vocabulary makes by merges anyway
    same = {"llama-bpe", "chatglm-bpe"}
    assert match.name == name or {match.name, name} == same


def test_tokens_with_scores_stand_for_merges_and_likelihoods() -> None:
    template, bos, eos, _ = chat_templates.FAMILIES["llama2"]
    tokenizer = chat_templates.wrap(chat_templates.metaspace(), template, bos, eos, True)
    found = gguf_vocab.read(tokenizer, len(tokenizer) + 5, [])
    assert (found.model, found.space_prefix, found.adds["bos"]) == ("llama", True, True)
    assert found.types[-1] == gguf.TokenType.UNUSED
    assert found.types[found.tokens.index("<0x41>")] == gguf.TokenType.BYTE
    assert found.scores[found.tokens.index("日本")] == -4.0


@pytest.mark.parametrize("family", some(chat_templates.FAMILIES, "llama3", "gemma2"))
def test_a_modelfile_has_a_template_only_where_it_says_the_same(family: str) -> None:
    template, bos, eos, end = chat_templates.FAMILIES[family]
    tokenizer = chat_templates.wrap(chat_templates.bpe(), template, bos, eos, bool(bos))
    made = modelfile.text("m.gguf", tokenizer, [end], {}, bool(bos))
    # llama2's system prompt lies in the first turn, gemma2's and llm-jp's templates have none
    without = {"gemma2", "llama2", "llm-jp", "harmony"}
    assert ("TEMPLATE" in made) == (family not in without)
    assert json.dumps(end, ensure_ascii=False) in made


def test_an_adapter_alone_has_no_other_type() -> None:
    config = ExportConfig(
        model="hina-4m", adapter="run", output="o.gguf", merge_adapter=False, outtype="q4_k_m"
    )
    [problem] = config.contradictions()
    assert str(problem).startswith("outtype: q4_k_m: an adapter alone is written in f32")


def test_an_adapter_alone_needs_no_tokenizer_that_llama_cpp_has(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    flags = ["--model", str(tiny_model), "--adapter", str(adapter), "--output"]
    flags += [str(tmp_path / "o.gguf"), "--merge-adapter"]
    assert guarded(export.run, [*flags, "true", "--dry-run"]) == 2
    assert "give --tokenizer nearest" in capsys.readouterr().err
    assert guarded(export.run, [*flags, "false", "--dry-run"]) == 0
    assert "that of the base's file" in capsys.readouterr().out
    for file in tiny_model.glob("*token*"):
        shutil.copy(file, adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", "utf-8")
    assert guarded(export.run, [*flags, "false"]) == 0
    assert "--chat-template-file" in " ".join(capsys.readouterr().out.split())
    assert guarded(export.run, [*flags, "false", "--tokenizer", "nearest"]) == 2
    assert "tokenizer: the file of an adapter alone has none" in capsys.readouterr().err
