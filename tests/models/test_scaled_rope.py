"""Scaled rotary embeddings: transformers' numbers, in training and in what is made of it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from aift_ray.commandline import parse
from aift_ray.config import RunConfig, ServeConfig
from aift_ray.engine.loss import LossModule
from aift_ray.errors import ConfigError, ModelError
from aift_ray.models import hub, load, provenance
from aift_ray.models.attention.document_attention import NAME
from aift_ray.models.base_and_adapter import find_place
from aift_ray.models.scaled_rope import ScaledLocation, scaling_of
from aift_ray.quantization import merge_adapter, quantizer
from aift_ray.runs.prepare import prepare
from aift_ray.serving import startup
from aift_ray.serving.engines.vllm import vllm_options
from aift_ray.training.lora_finetuning import LoRAFinetuningTrainer
from tests.conftest import make_tiny_model
from tests.helpers.runs import started
from tests.helpers.served import Served
from tests.helpers.tiny_families import make, save, with_towers
from tests.helpers.whole_runs import run
from tests.serving.conftest import Site

Configure = Callable[..., Any]
CONTEXT = 48
IDS = torch.randint(10, 5000, (1, 120), generator=torch.Generator().manual_seed(0))
# as a user of transformers writes them into config.json
WRITTEN: dict[str, dict[str, Any]] = {
    "yarn:4": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT},
    "linear:4": {"rope_type": "linear", "factor": 4.0},
    "llama3:4": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    },
}


def short(folder: Path, kind: str = "llama", **numbers: Any) -> Path:
    """A tiny model that was trained on 48 tokens."""
    made = make_tiny_model(folder, kind, max_position_embeddings=CONTEXT, **numbers)
    model = AutoModelForCausalLM.from_pretrained(made)
    with torch.no_grad():
        # attention far from uniform, so that positions count
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    model.save_pretrained(made)
    return made


def written(folder: Path, scaling: str, to: Path) -> Path:
    """A copy of a model whose config.json names the scaling by transformers' keys."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text("utf-8"))
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    rope.update(WRITTEN[scaling])
    config["max_position_embeddings"] = 4 * CONTEXT
    (to / "config.json").write_text(json.dumps(config), "utf-8")
    return to


def trained(configure: Configure, folder: Path, tmp_path: Path) -> tuple[Path, PeftModel]:
    """An adapter trained on a short model with scaling, and both as PEFT opens them."""
    how = {"method": "lora", "rope_scaling": "yarn:4", "training__max_steps": 2}
    run(configure(model=str(folder), training__learning_rate=1e-2, **how), tmp_path / "run")
    adapter = tmp_path / "run" / "model"
    theirs = AutoModelForCausalLM.from_pretrained(
        written(folder, "yarn:4", tmp_path / "theirs"), dtype=torch.float32
    )
    return adapter, PeftModel.from_pretrained(theirs, adapter)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("scaling", WRITTEN)
def test_a_scaled_model_computes_what_transformers_computes(
    scaling: str, kind: str, tmp_path: Path
) -> None:
    folder = short(tmp_path / "plain", kind)
    place = pickle.loads(pickle.dumps(ScaledLocation(str(folder), scaling)))
    assert hub.context(hub.load_config(place)) == 4 * CONTEXT
    model = load.load_model(place, torch.float32, NAME)
    theirs = AutoModelForCausalLM.from_pretrained(written(folder, scaling, tmp_path / "theirs"))
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    plain = load.load_model(str(folder), torch.float32, NAME)
    assert (logits(plain) - logits(model)).abs().max() > 1e-2


def test_rows_longer_than_the_context_are_answered_with_a_scaling(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(model=str(short(tmp_path / "model")), data__sequence_length=130)
    with pytest.raises(ConfigError, match="at most 48 tokens") as caught:
        prepare(config, tmp_path / "run", 1, False, None)
    assert "--rope-scaling yarn:3" in caught.value.problems[0].remedy
    typed = parse(["--rope-scaling", "yarn:3"], RunConfig, "train", "", "")
    assert typed.config.rope_scaling == "yarn:3"
    scaled = configure(
        model=str(tmp_path / "model"), data__sequence_length=130, rope_scaling="yarn:3"
    )
    assert prepare(scaled, tmp_path / "run", 1, False, None).job.config.rope_scaling == "yarn:3"
    gpt2 = configure(model=str(make("gpt2", tmp_path / "gpt2")), data__sequence_length=600)
    with pytest.raises(ConfigError, match="at most 512 tokens") as caught:
        prepare(gpt2, tmp_path / "run", 1, False, None)
    assert "rope" not in caught.value.problems[0].remedy


def test_what_can_not_be_scaled_is_refused_by_name(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use yarn"):
        configure(rope_scaling="dynamic:4")
    for wrong in ("yarn", "yarn:1", "ntk:4", "yarn:nan"):
        with pytest.raises(ConfigError, match="KIND of linear, llama3, yarn"):
            configure(rope_scaling=wrong)
    scaled = written(short(tmp_path / "model"), "linear:4", tmp_path / "linear")
    refused = {
        "model family gpt2: its layers have no rotary": make("gpt2", tmp_path / "gpt2"),
        "model family llama: its embeddings are scaled already, by linear": scaled,
        "model family mistral3: the files of a model with towers": save(
            with_towers("mistral3"), tmp_path / "towers"
        ),
    }
    for what, folder in refused.items():
        config = configure(model=str(folder), rope_scaling="yarn:4")
        with pytest.raises(ModelError, match=what):
            prepare(config, tmp_path / "run", 1, False, None)


def test_a_full_model_is_saved_with_its_scaling(configure: Configure, tmp_path: Path) -> None:
    folder = short(tmp_path / "model")
    config = configure(model=str(folder), rope_scaling="yarn:4", training__max_steps=1)
    run(config, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text("utf-8"))
    assert saved["rope_parameters"].items() >= WRITTEN["yarn:4"].items()
    assert saved["max_position_embeddings"] == 4 * CONTEXT
    # the checkpoint's own configuration has it
    state = tmp_path / "run" / "checkpoints" / "step-1" / "config.json"
    assert "yarn" in state.read_text("utf-8")


def test_an_adapter_is_opened_and_merged_as_it_was_trained(
    configure: Configure, tmp_path: Path
) -> None:
    folder = short(tmp_path / "model")
    adapter, adapted = trained(configure, folder, tmp_path)
    recorded = provenance.remembered(adapter)["base"]
    assert recorded["rope_scaling"] == "yarn:4"
    assert recorded["settings"]["rope_parameters.factor"] == 4.0
    expected = logits(adapted)
    assert scaling_of(find_place(str(adapter)).base) == "yarn:4"
    opened, _ = LoRAFinetuningTrainer.load_lora_model(
        str(folder), str(adapter), torch.device("cpu")
    )
    torch.testing.assert_close(logits(opened), expected, rtol=1e-4, atol=1e-4)
    location = quantizer.source(str(folder), str(adapter))
    merge_adapter.merge(location, adapter, torch.float32, torch.device("cpu"), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    # a server opens the base so, whatever computes it
    serving = ServeConfig(model=str(folder), adapters=[f"own={adapter}"])
    checked = startup.check(serving, False)
    assert scaling_of(checked.location) == "yarn:4"
    options = vllm_options.options(
        serving, checked.location, torch.float32, torch.device("cpu"), {"own": str(adapter)}
    )
    assert options["hf_overrides"]["rope_parameters"].items() >= WRITTEN["yarn:4"].items()
    # and answers a prompt that the base alone does not take
    site = Site(tmp_path, {"own": adapter}, model=str(folder))
    asked = {"prompt": IDS[0].tolist(), "max_tokens": 8, "temperature": 0}
    answer = site.send("POST", "/v1/completions", json={"model": "own"} | asked).json()
    site.close()
    assert answer["choices"][0]["text"] == generated(adapted, folder)
    # the card's lines open the base as it was trained
    card = (adapter / "README.md").read_text("utf-8")
    assert "config.rope_parameters = {" in card
    assert f"config.max_position_embeddings = {4 * CONTEXT}" in card


def generated(model: Any, folder: Path) -> str:
    """What transformers makes of the prompt, with the tokenizer in `folder`."""
    made = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False
    )
    tokenizer = hub.load_tokenizer(str(folder))
    return str(tokenizer.decode(made[0, IDS.shape[1] :], skip_special_tokens=True))


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_serves_an_adapter_with_its_scaling(
    configure: Configure, tmp_path: Path
) -> None:
    folder = short(tmp_path / "model")
    adapter, adapted = trained(configure, folder, tmp_path)
    wanted = generated(adapted, folder)
    flags = ("--adapter", f"own={adapter}", "--no-auth")
    served = Served(tmp_path, "--model", str(folder), *flags)
    try:
        asked = {"prompt": IDS[0].tolist(), "max_tokens": 8, "temperature": 0}
        answer = served.http.post("/v1/completions", json={"model": "own"} | asked)
    finally:
        served.stop()
    assert answer.json()["choices"][0]["text"] == wanted


def test_a_run_from_an_adapter_needs_its_scaling(configure: Configure, tmp_path: Path) -> None:
    folder = short(tmp_path / "model")
    how = {"model": str(folder), "method": "lora", "data__sequence_length": 40}
    run(configure(rope_scaling="yarn:4", training__max_steps=1, **how), tmp_path / "run")
    start = {"lora__init_from": str(tmp_path / "run" / "model")}
    with pytest.raises(ModelError, match=r"rope_scaling yarn:4[^$]*--rope-scaling yarn:4"):
        prepare(configure(**how, **start), tmp_path / "other", 1, False, None)
    again = configure(rope_scaling="yarn:4", **how, **start)
    assert isinstance(started(again, tmp_path / "again").module, LossModule)
