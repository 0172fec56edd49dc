"""Adapters on the experts of a mixture through the Python API, from training to an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from aift_ray import JapaneseModel, LoRAConfig, LoRAFinetuningTrainer, TrainingConfig
from aift_ray.models.bnb.experts_4bit import Packed4bitExperts
from tests.quantization.conftest import Quantize

IDS = torch.tensor([[5, 99, 1203, 42, 7, 3000]])
TEXTS = ["富士山は日本でいちばん高い山です。", "琵琶湖は日本でいちばん大きい湖です。"] * 4


@pytest.mark.parametrize("narrow", [False, True])
def test_what_was_trained_answers_here_and_in_plain_peft(
    narrow: bool, tiny_mixture: Path, tmp_path: Path, run: Quantize
) -> None:
    config = TrainingConfig(
        output_dir=str(tmp_path / "out"), batch_size=4, learning_rate=1e-2, warmup_steps=0
    )
    lora = LoRAConfig(r=4, experts=True, lora_dropout=0.0, use_qlora=narrow)
    trainer = LoRAFinetuningTrainer(JapaneseModel(str(tiny_mixture)), lora, config)
    trained = trainer.train(train_texts=TEXTS)
    folder = next(p for p in (tmp_path / "out").rglob("model") if p.is_dir())
    again = JapaneseModel(str(folder), load_in_4bit=narrow)
    model = again.load_model()
    assert any(isinstance(module, Packed4bitExperts) for module in model.modules()) is narrow
    plain = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        ours, wanted = model(IDS).logits, plain(IDS).logits
        torch.testing.assert_close(trained(IDS).logits, ours, rtol=1e-4, atol=1e-4)
        if narrow:
            assert torch.nn.functional.cosine_similarity(ours, wanted, dim=-1).mean() > 0.9
        else:
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert again.generate_japanese("富士山とは？", do_sample=False, max_new_tokens=4) is not None
    merged = run("--adapter", str(folder), "--bits", "16", model=tiny_mixture, name="merged")
    with torch.no_grad():
        found = JapaneseModel(str(merged)).load_model()(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
