"""Merged models are the arithmetic of their weights, number by number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from aift_ray import merge
from aift_ray.config import MergeConfig
from aift_ray.config.merge_config import OF_BASE, Method
from aift_ray.conversion import merge_methods
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED, make_tiny_model

ONE = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
TWO = torch.tensor([[-3.0, -1.0], [0.25, 2.0]])
BASE = torch.tensor([[0.5, -1.0], [0.5, 1.0]])


def merged(method: str, base: torch.Tensor | None = None, **settings: object) -> torch.Tensor:
    config = MergeConfig(
        method=method, models=["a", "b"], base="c" if base is not None else None, **settings
    )
    return merge_methods.merge(config, "w", [ONE, TWO], base)


def test_linear_is_the_weighted_mean_or_sum() -> None:
    assert torch.equal(merged("linear"), (ONE + TWO) / 2)
    found = merged("linear", weights=[3.0, 1.0], normalize=False)
    assert torch.equal(found, 3 * ONE + TWO)


def test_slerp_keeps_its_ends_and_the_length_of_unit_vectors() -> None:
    assert torch.allclose(merged("slerp", weights=[1.0, 0.0]), ONE)
    assert torch.allclose(merged("slerp", weights=[0.0, 1.0]), TWO)
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    third = merge_methods.slerp(x, y, 1 / 3)
    assert torch.allclose(third, torch.tensor([3**0.5 / 2, 0.5]))
    assert torch.equal(merge_methods.slerp(x, 2 * x, 0.5), 1.5 * x)
    assert torch.equal(merge_methods.slerp(x, 0 * x, 0.25), 0.75 * x)


def test_a_chat_vector_is_the_difference_that_is_added() -> None:
    assert torch.equal(merged("task_arithmetic", BASE), ONE + (TWO - BASE))
    found = merged("task_arithmetic", BASE, weights=[1.0, 0.5])
    assert torch.equal(found, BASE + (ONE - BASE) + 0.5 * (TWO - BASE))


def test_ties_keeps_the_largest_and_elects_a_sign() -> None:
    # differences 0.5 -1 / 0 3 and -3.5 0 / -0.25 1, of which half are kept: -1 3 and -3.5 1
    assert torch.equal(merged("ties", BASE), BASE + torch.tensor([[-3.5, -1.0], [0.0, 2.0]]))
    found = merged("ties", BASE, density=1.0, normalize=False)
    assert torch.equal(found, BASE + torch.tensor([[-3.5, -1.0], [-0.25, 4.0]]))


def test_dare_keeps_a_part_and_scales_it_whatever_the_order_of_tensors() -> None:
    delta = torch.randn(400, 50)
    found = merge_methods.dropped(delta, 0.25, "0:0:w")
    kept = found != 0
    assert abs(kept.float().mean().item() - 0.25) < 0.02
    assert torch.equal(found[kept], delta[kept] / 0.25)
    assert torch.equal(found, merge_methods.dropped(delta, 0.25, "0:0:w"))
    assert not torch.equal(found, merge_methods.dropped(delta, 0.25, "0:0:v"))
    for method in ("dare_linear", "dare_ties"):
        whole = merged(method, BASE, density=1.0, normalize=False)
        like = "task_arithmetic" if method == "dare_linear" else "ties"
        extra = {} if like == "task_arithmetic" else {"density": 1.0, "normalize": False}
        assert torch.equal(whole, merged(like, BASE, **extra))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two models made of it; the last in two files."""
    root = tmp_path_factory.mktemp("merge")
    base = make_tiny_model(root / "base")
    found = [base]
    for number, limit in ((1, "10GB"), (2, "400KB")):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
        folder = root / f"m{number}"
        model.save_pretrained(folder, max_shard_size=limit)
        for path in base.glob("*token*"):
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "chat_template.jinja").write_bytes((base / "chat_template.jinja").read_bytes())
        found.append(folder)
    (base / "chat_template.jinja").unlink()
    return found


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def run(*argv: object) -> int:
    return guarded(merge.run, [str(part) for part in argv])


def test_the_command_writes_a_folder_that_transformers_opens(
    three: list[Path], tmp_path: Path
) -> None:
    base, one, two = three
    flags = ("--method", "task_arithmetic", "--base", base, "--model", one, "--model", two)
    assert run(*flags, "--output-dir", tmp_path / "out") == 0
    weights = [read(folder) for folder in three]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    state = model.state_dict()
    for name in weights[0]:
        first, a, b = (each[name] for each in weights)
        assert torch.equal(state[name], first + ((a - first) + (b - first))), name
    # that of the first model that has one
    template = (one / "chat_template.jinja").read_text("utf-8")
    assert (tmp_path / "out" / "chat_template.jinja").read_text("utf-8") == template
    report = json.loads((tmp_path / "out" / "merge.json").read_text("utf-8"))
    assert report["settings"]["method"] == "task_arithmetic"


def test_shards_may_be_cut_elsewhere(three: list[Path], tmp_path: Path) -> None:
    _, one, two = three
    assert run("--model", two, "--model", one, "--output-dir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    found, weights = read(tmp_path / "out"), [read(two), read(one)]
    assert all(torch.equal(found[n], (weights[0][n] + weights[1][n]) / 2) for n in found)


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    def call(*argv: object) -> str:
        assert run(*argv, "--output-dir", tmp_path / "out") == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert not (tmp_path / "out").exists()
        return message

    return call


def test_settings_that_can_not_stand_together_are_named(refused: Refused) -> None:
    message = refused("--method", "slerp", "--model", "a", "--weights", 0.5, "--density", 0.5)
    for part in ("slerp needs 2", "add up to 0.5", "density: does not act with slerp"):
        assert part in message
    message = refused("--method", "ties", "--model", "a", "--weights", 1, "--weights", 2)
    assert "none is given" in message
    assert "2 are given for 1 models" in message


def test_mistakes_of_settings_names_folder_and_weights_come_at_once(
    three: list[Path], refused: Refused, tmp_path: Path
) -> None:
    _, one, _ = three
    flags = ("--model", one, "--model", SHIPPED, "--model", "hina-4", "--density", 0.5)
    message = refused(*flags, "--weights", 1, "--foo", 3, "--prompts-from", tmp_path)
    for part in (
        "--foo: there is no such flag",
        "density: does not act with linear",
        "1 are given for 3 models",
        "did you mean hina-4m",
        f"model {tmp_path}: the folder has no config.json",
        f"model {SHIPPED}: lacks model.layers",
    ):
        assert part in message


def test_other_tokenizers_and_sizes_are_refused(
    three: list[Path], refused: Refused, tmp_path: Path
) -> None:
    _, one, _ = three
    other = make_tiny_model(tmp_path / "other", hidden_size=32)
    file = other / "tokenizer.json"
    definition = json.loads(file.read_text("utf-8"))
    definition["added_tokens"][0]["content"] = "<|other|>"
    vocabulary = definition["model"]["vocab"]
    vocabulary["<|other|>"] = vocabulary.pop("<|endoftext|>")
    file.write_text(json.dumps(definition), "utf-8")
    (other / "aift_ray.json").unlink(missing_ok=True)
    message = refused("--model", one, "--model", other)
    assert "its tokenizer is not that of" in message
    assert "is [5056, 32], and [5056, 64] in" in message


def test_a_model_of_other_weights_is_refused(
    three: list[Path], refused: Refused, tmp_path: Path
) -> None:
    _, one, _ = three
    assert "lacks" in refused("--model", one, "--model", SHIPPED)
    broken = make_tiny_model(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    assert "becomes infinite or NaN" in refused("--model", one, "--model", broken)


@pytest.mark.parametrize("method", get_args(Method))
def test_a_model_that_is_given_twice_is_named(
    method: str, three: list[Path], refused: Refused
) -> None:
    base = ["--base", str(three[0])] if method in OF_BASE else []
    one = str(three[1])
    for other in (one, f"{one}/../{three[1].name}"):
        message = refused("--method", method, *base, "--model", one, "--model", other)
        told = "is given twice" if other == one else f"is {one}, which is given already"
        assert f"models: {other} {told}" in message
        assert "1 problem" in message
