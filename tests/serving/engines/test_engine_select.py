"""Which engine makes the tokens: said in a line, and what it can't do refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from aift_ray.commandline import validated
from aift_ray.config import ServeConfig, VllmConfig
from aift_ray.errors import ConfigError
from aift_ray.models.catalog import CATALOG
from aift_ray.ray_backend import serve_app
from aift_ray.serve import run
from aift_ray.serving import startup
from aift_ray.serving.engines import engine_select
from aift_ray.serving.engines.vllm import vllm_families, vllm_options
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED
from tests.helpers.tiny_families import make
from tests.serving import vllm_architectures
from tests.serving.conftest import vllm_python, write_adapter

CPU = torch.device("cpu")


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM were there."""
    monkeypatch.setattr(engine_select, "installed", lambda: True)


def config(**values: Any) -> ServeConfig:
    made: ServeConfig = validated(values, ServeConfig)
    return made


def test_auto_says_why_it_takes_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def line(gpu: bool = True, **values: Any) -> str:
        return str(engine_select.choose(config(**values), str(SHIPPED), gpu))

    assert line(gpu=False) == "transformers: there is no GPU"
    monkeypatch.setattr(engine_select, "installed", lambda: False)
    assert line() == 'transformers: vllm is not installed (pip install "aift-ray[vllm]")'
    monkeypatch.setattr(engine_select, "installed", lambda: True)
    assert line(load_in="8bit").startswith("transformers: vllm can't serve this: ")
    assert line() == "vllm: there is a GPU, and vllm takes the model"
    assert line(engine="transformers") == "transformers: as set"
    folder = make("diffllama", tmp_path)
    found = str(engine_select.choose(config(), str(folder), True))
    assert found.startswith("transformers: vllm can't serve this: model family diffllama: ")


def test_vllm_that_is_not_installed_is_an_error_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_select, "installed", lambda: False)
    assert guarded(run, ["--engine", "vllm"]) == 2
    told = capsys.readouterr().err
    assert "engine: vllm is not installed" in told
    assert 'pip install "aift-ray[vllm]"' in told


def test_settings_of_vllm_are_refused_by_name_with_another_engine() -> None:
    for engine in ("auto", "transformers"):
        with pytest.raises(ConfigError) as caught:
            config(engine=engine, vllm={"max_loras": 2, "enforce_eager": True})
        told = [problem.where for problem in caught.value.problems]
        assert told == ["vllm.max_loras", "vllm.enforce_eager"]


@pytest.mark.parametrize(
    ("values", "gpu", "named"),
    [
        ({"load_in": "8bit"}, True, ["load_in"]),
        ({"load_in": "4bit"}, True, []),
        ({"load_in": "4bit"}, False, ["load_in"]),
        ({"vllm": {"tensor_parallel_size": 2}}, False, ["vllm.tensor_parallel_size"]),
        ({"vllm": {"tensor_parallel_size": 2}}, True, []),
        ({"serving": {"prefix_memory": "1GiB"}}, True, ["serving.prefix_memory"]),
    ],
)
def test_what_vllm_can_not_do_is_refused_by_name(
    with_vllm: None, values: dict[str, Any], gpu: bool, named: list[str]
) -> None:
    asked = config(engine="vllm", **values)
    assert [each.where for each in engine_select.refusals(asked, str(SHIPPED), gpu)] == named


@pytest.mark.parametrize(
    ("family", "adapted", "what", "layout"),
    [
        ("diffllama", False, "vLLM has no network of it", "use --engine transformers; "),
        ("rwkv", False, "vLLM has no network of it", "no layout works: no packing"),
        ("stablelm", True, "vLLM's network of it takes no adapters", "merge the adapter into"),
        ("stablelm", False, "", ""),
        ("qwen3_moe", True, "", ""),
        ("lfm2", True, "", ""),
    ],
)
def test_a_family_that_vllm_does_not_serve_is_refused_with_one_that_it_does(
    family: str, adapted: bool, what: str, layout: str
) -> None:
    found = vllm_families.refused(CONFIG_MAPPING[family](), adapted)
    assert len(found) == bool(what)
    for problem in found:
        assert problem.where == "engine"
        assert problem.what == f"model family {family}: {what}"
        assert problem.remedy.startswith(layout)
        near = CATALOG[problem.remedy.rsplit(" ", 1)[-1]].architecture.model_type
        assert (vllm_families.is_adapted if adapted else vllm_families.is_served)(near)


def test_the_command_refuses_a_family_of_which_vllm_has_no_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make("diffllama", tmp_path))
    assert guarded(run, ["--engine", "vllm", "--model", folder, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "engine: model family diffllama: vLLM has no network of it" in told
    assert "use --engine transformers; or choose another model, such as " in told


def test_the_table_is_what_vllms_registry_says() -> None:
    vllm_python()
    found = vllm_architectures.rows(vllm_architectures.packages())
    assert {one["architecture"]: one["adapters"] == "yes" for one in found} == (
        vllm_families.table()
    ), "run make vllm-families"


def test_a_replica_gets_the_gpus_and_the_engine_that_the_cluster_allows(with_vllm: None) -> None:
    def options(resources: dict[str, float], **values: Any) -> tuple[Any, str]:
        made = serve_app.deployment(config(**values), None, resources)._bound_deployment
        return made.ray_actor_options["num_gpus"], made.init_args[0].engine

    assert options({"CPU": 4}) == (0, "transformers")
    assert options({"CPU": 4, "GPU": 1}) == (1, "vllm")
    two = {"engine": "vllm", "vllm": {"tensor_parallel_size": 2}}
    assert options({"CPU": 4, "GPU": 2}, **two) == (2, "vllm")
    with pytest.raises(ConfigError, match="splits the model over GPUs"):
        options({"CPU": 4}, **two)


@pytest.mark.parametrize(
    ("values", "gpus", "told"),
    [
        ({"serving": {"num_replicas": "3"}}, 2, "3 replicas of 1 GPU need 3, and there are 2"),
        # all that may be started, not only those that are at first
        ({"serving": {"num_replicas": "1:4"}}, 2, "4 replicas of 1 GPU need 4, and there are 2"),
        (
            {"engine": "vllm", "vllm": {"tensor_parallel_size": 2}},
            1,
            "1 replicas of 2 GPUs need 2, and there are 1",
        ),
    ],
)
def test_replicas_without_a_gpu_are_not_made_beside_those_with_one(
    with_vllm: None, values: dict[str, Any], gpus: int, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        serve_app.deployment(config(**values), None, {"CPU": 8, "GPU": gpus})


def test_a_replica_that_has_reserved_no_gpu_sees_none() -> None:
    def seen(resources: dict[str, float]) -> str | None:
        made = serve_app.deployment(config(), None, resources)._bound_deployment
        found: str | None = made.ray_actor_options["runtime_env"]["env_vars"].get(
            "CUDA_VISIBLE_DEVICES"
        )
        return found

    assert seen({"CPU": 4}) == ""
    # Ray says which are reserved
    assert seen({"CPU": 4, "GPU": 1}) is None


def test_quantized_weights_go_where_the_replica_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(self: Any, device_map: Any) -> Any:
        # stands for what transformers does where there is a GPU: take the first it sees
        return device_map or {"": "meta"}

    monkeypatch.setattr(Bnb4BitHfQuantizer, "update_device_map", elsewhere)
    checked = startup.check_base(config(load_in="4bit"), gpu=False)
    engine: Any = startup._transformers(checked)
    weights = engine._model.parameters()
    assert {weight.device for weight in weights} == {CPU}
    assert startup.check_base(config(), gpu=True).device == torch.device("cuda", 0)


def test_adapters_get_the_room_that_they_need(tmp_path: Path) -> None:
    def options(adapters: dict[str, str], **values: Any) -> dict[str, Any]:
        asked = config(engine="vllm", **values)
        return vllm_options.options(asked, str(SHIPPED), torch.float32, CPU, adapters)

    assert "enable_lora" not in options({})
    folder = str(write_adapter(tmp_path / "shelf" / "a", 0, r=12))
    given = options({"a": folder, "b": folder})
    assert (given["max_lora_rank"], given["max_loras"]) == (16, 2)
    later = options({}, serving={"adapter_folder": str(tmp_path / "shelf")})
    assert (later["max_lora_rank"], later["max_loras"]) == (64, 4)
    told = options({"a": folder}, vllm={"max_lora_rank": 128, "max_loras": 7})
    assert (told["max_lora_rank"], told["max_loras"]) == (128, 7)
    assert given["max_cpu_loras"] >= given["max_loras"]


def test_a_cpu_keeps_what_its_slots_need_and_no_more_than_4_gib() -> None:
    def memory(**values: Any) -> int:
        asked = config(engine="vllm", **values)
        found = vllm_options.options(asked, str(SHIPPED), torch.float32, CPU, {})
        return int(found["kv_cache_memory_bytes"])

    # two numbers a layer and head, four bytes each
    token = 2 * 4 * 2 * 64 * 4
    assert memory(serving={"slots": 3}) == (3 * 16 + 2) * 128 * token
    assert memory(serving={"slots": 5000}) == 4 * 2**30
    assert memory(vllm={"kv_cache_memory": "1GiB"}) == 2**30


def test_the_ranks_that_may_be_set_are_vllms() -> None:
    kind = get_args(VllmConfig.model_fields["max_lora_rank"].annotation)[0]
    assert get_args(kind) == (8, 16, 32, 64, 128, 256, 320, 512)
