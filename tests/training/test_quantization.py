"""QuantizationOptimizer: what it writes is what `from_pretrained` reads, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import aift_ray
from aift_ray.errors import ConfigError, ModelError
from aift_ray.models.bnb.bnb_layers import layers
from aift_ray.training.quantization import QuantizationOptimizer
from tests.conftest import SHIPPED

FORMS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8 without threshold": {"llm_int8_threshold": 0.0},
    "nf4": {"use_double_quant": False},
    "nf4 double": {"compute_dtype": torch.bfloat16},
    "fp4": {"quant_type": "fp4", "use_double_quant": False, "compute_dtype": torch.float32},
    "fp4 double": {"quant_type": "fp4"},
}
IDS = AutoTokenizer.from_pretrained(SHIPPED)(
    "明日は雨が降るでしょう。", return_tensors="pt"
).input_ids


def quantized(form: str, folder: Path, model: str = str(SHIPPED)) -> Any:
    optimizer = QuantizationOptimizer(model)
    method = optimizer.quantize_to_8bit if "int8" in form else optimizer.quantize_to_4bit
    return method(str(folder), **FORMS[form])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_reload_gives_the_same_logits_bit_for_bit(form: str, tmp_path: Path) -> None:
    model = quantized(form, tmp_path / "one")
    expected = logits(model)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert torch.equal(logits(reloaded), expected)
    # a forward pass has been made: what is saved now is what was saved before it
    model.save_pretrained(tmp_path / "two")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(logits(model), expected)


def test_plain_transformers_in_another_process_gives_the_same_logits(tmp_path: Path) -> None:
    expected = {form: logits(quantized(form, tmp_path / form)) for form in FORMS}
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M\n"
        "torch.set_num_threads(1); ids = torch.tensor([eval(sys.argv[1])])\n"
        "with torch.no_grad():\n"
        " torch.save({f: M.from_pretrained(f)(ids).logits for f in sys.argv[2:]}, 'logits.pt')\n"
        "assert 'aift_ray' not in sys.modules"
    )
    command = [sys.executable, "-c", script, str(IDS[0].tolist()), *FORMS]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = torch.load(tmp_path / "logits.pt")
    assert [form for form in FORMS if not torch.equal(found[form], expected[form])] == []


@pytest.mark.parametrize("form", ["nf4", "nf4 double", "int8"])
def test_an_evaluated_model_can_still_be_trained(form: str, tmp_path: Path) -> None:
    def gradient(model: Any) -> torch.Tensor:
        inputs = model.get_input_embeddings()(IDS).detach().requires_grad_()
        model.train()(inputs_embeds=inputs, labels=IDS).loss.backward()
        assert inputs.grad is not None
        return inputs.grad

    never, once = (quantized(form, tmp_path / name) for name in ("never", "once"))
    logits(once.eval())
    assert torch.equal(gradient(never), gradient(once))


@pytest.mark.parametrize("form", ["int8", "nf4 double"])
def test_tokenizer_template_and_stop_ids_travel_byte_for_byte(form: str, tmp_path: Path) -> None:
    quantized(form, tmp_path / "out")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_every_linear_layer_of_the_blocks_is_quantized(tmp_path: Path) -> None:
    assert len(layers(quantized("int8", tmp_path / "8"), 8)) == 4 * 7
    assert len(layers(quantized("nf4", tmp_path / "4"), 4)) == 4 * 7


def test_layers_that_not_every_cpu_can_evaluate_stay_as_they_are(
    tiny_model: Path, tmp_path: Path
) -> None:
    # down_proj has 96 columns, no multiple of 64
    model = quantized("nf4", tmp_path / "out", str(tiny_model))
    assert len(layers(model, 4)) == 2 * 6
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(model))


def test_options_act(tmp_path: Path) -> None:
    found = {form: logits(quantized(form, tmp_path / form)).float() for form in FORMS}
    names = list(found)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            assert not torch.equal(found[one], found[other]), (one, other)


def test_the_benchmark_has_the_documented_structure(tmp_path: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(SHIPPED)
    model = quantized("nf4 double", tmp_path / "out")
    optimizer = aift_ray.QuantizationOptimizer("hina-4m")
    report = optimizer.benchmark_quantization(original, model, [IDS, IDS[0, :5]], num_runs=3)
    measures = ["memory_mb", "latency_ms_median", "latency_ms_p95", "tokens_per_second"]
    measures += ["perplexity"]
    assert list(report) == ["original", "quantized", "ratio", "logit_difference"]
    for name in ("original", "quantized", "ratio"):
        assert list(report[name]) == measures
    for name in measures:
        assert report["original"][name] > 0
        expected = report["quantized"][name] / report["original"][name]
        assert report["ratio"][name] == pytest.approx(expected)
    assert report["ratio"]["memory_mb"] < 0.6
    assert report["logit_difference"]["max"] > report["logit_difference"]["mean"] > 0


@pytest.mark.parametrize(
    ("inputs", "runs", "parts"),
    [
        ([], 1, ["test_inputs", "empty"]),
        ([torch.ones(3)], 0, ["test_inputs[0]", "float32", "num_runs"]),
        ([IDS, "文"], 1, ["test_inputs[1]", "str"]),
        ([torch.tensor([[9999]])], 1, ["5056"]),
        ([torch.zeros(0, dtype=torch.int64)], 1, ["(0,)"]),
    ],
)
def test_wrong_test_inputs_are_named(inputs: list[Any], runs: int, parts: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    with pytest.raises(ConfigError) as caught:
        QuantizationOptimizer("hina-4m").benchmark_quantization(model, model, inputs, runs)
    assert all(part in str(caught.value) for part in parts)


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("method", "options", "parts"),
    [
        ("quantize_to_4bit", {"quant_type": "nf5"}, ["quant_type", "nf5", "nf4", "fp4"]),
        ("quantize_to_4bit", {"compute_dtype": torch.int8}, ["compute_dtype", "float16"]),
        ("quantize_to_8bit", {"llm_int8_threshold": -1.0}, ["llm_int8_threshold", "-1.0"]),
        ("quantize_to_8bit", {"llm_int8_has_fp16_weight": True}, ["fp16_weight", "on a CPU"]),
        (
            "quantize_to_8bit",
            {"llm_int8_enable_fp32_cpu_offload": True},
            ["fp32_cpu_offload", "on the CPU"],
        ),
    ],
)
def test_what_can_not_act_is_refused(
    method: str, options: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        getattr(QuantizationOptimizer("hina-4m", CPU), method)(str(tmp_path / "out"), **options)
    assert all(part in str(caught.value) for part in parts)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    quantized("nf4", tmp_path / "out")
    with pytest.raises(ModelError, match=r"already quantized \(bitsandbytes, 4 bits"):
        quantized("int8", tmp_path / "again", str(tmp_path / "out"))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("大事", "utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        quantized("nf4", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_model_that_overflows_its_dtype_leaves_nothing(tmp_path: Path, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.norm.weight.data.fill_(1e6)
    model.save_pretrained(tmp_path / "loud")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "loud")
    with pytest.raises(ModelError, match="infinite or NaN"):
        quantized("nf4", tmp_path / "out", str(tmp_path / "loud"))
    assert [path.name for path in tmp_path.iterdir()] == ["loud"]
