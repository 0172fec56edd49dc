"""Private interfaces of libraries: each in a `*_compat.py`, and there in the installed version."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

PACKAGE = Path(__file__).resolve().parents[1] / "aift_ray"
# public, for all their underscores
PUBLIC = {"_replace", "_exit"}


def own_names() -> set[str]:
    """Names with an underscore that this package itself gives to something."""
    found = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node, ast.Name):
                    found.add(node.id)
                elif isinstance(node.value, ast.Name) and node.value.id == "self":
                    found.add(node.attr)
    return found


def trees() -> dict[str, ast.Module]:
    """The code of the package by file, without what may touch private interfaces."""
    paths = [path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_compat.py")]
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8")) for path in paths}


def private(tree: ast.Module) -> Iterator[str]:
    """Names with an underscore that are read, set or imported."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            # getattr(model, "_name")
            named = node.args[1]
            names = [str(named.value)] if isinstance(named, ast.Constant) else []
        yield from (name for name in names if name.startswith("_") and not name.endswith("__"))


def test_private_names_of_libraries_are_in_compat_files_alone() -> None:
    known = own_names() | PUBLIC
    found = {name: set(private(tree)) - known for name, tree in trees().items()}
    assert not {name: names for name, names in found.items() if names}


def test_the_inner_modules_of_vllm_are_in_its_compat_file_alone() -> None:
    found = [
        name
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm.v1")
    ]
    assert not found


def test_one_file_imports_deepspeed() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if "deepspeed" in {name.partition(".")[0] for name in names}:
                found.add(str(path.relative_to(PACKAGE)))
    assert found == {"parallel/deepspeed_compat.py"}


def _installed(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def _has(made: object, *names: str) -> None:
    missing = [name for name in names if not hasattr(made, name)]
    assert not missing, f"{made} has no {', '.join(missing)}"


def torch_store() -> None:
    from aift_ray.parallel.torch_compat import default_store

    with pytest.raises(ValueError, match="init_process_group"):
        default_store()


def torch_shard_offsets() -> None:
    from torch.distributed.tensor import _utils

    parameters = inspect.signature(_utils.compute_local_shape_and_global_offset).parameters
    assert list(parameters)[:3] == ["global_shape", "mesh", "placements"]


def torch_modules() -> None:
    from aift_ray.parallel.torch_compat import bare_copy

    module = nn.Sequential(nn.Linear(2, 2))
    heard: list[object] = []
    module.register_forward_pre_hook(lambda *_: heard.append(1))
    module.register_forward_hook(lambda *_: heard.append(2))
    made = bare_copy(module, lambda _, part: nn.Identity())
    assert torch.equal(made(torch.ones(2)), torch.ones(2)), "its own children"
    assert not heard, "and no hooks"
    module(torch.ones(2))
    assert heard == [1, 2]


def torch_forward() -> None:
    from aift_ray.utils import forward_compat as compat

    module = nn.Identity()
    module.register_forward_hook(lambda _, inputs, output: output + inputs[0])
    compat.replace_forward(module, lambda x: 2 * x)
    assert compat.is_replaced(module)
    assert module(1) == 3, "and its hooks"
    assert module.state_dict() == {}
    compat.restore_forward(module)
    assert not compat.is_replaced(module)
    assert module(1) == 2


def torch_scaler() -> None:
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    from aift_ray.parallel.torch_compat import scalar_overflow_flags

    scaler = ShardedGradScaler("cpu", enabled=True)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    state = scaler._per_optimizer_states[id(optimizer)]
    assert state["found_inf_per_device"] == {}
    state["found_inf_per_device"] = {torch.device("cpu"): torch.zeros(1)}
    scalar_overflow_flags(scaler, optimizer)
    (flag,) = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
    assert flag.shape == ()


def ray_core() -> None:
    from ray import _raylet
    from ray.experimental import internal_kv

    _has(_raylet, "AuthenticationTokenLoader", "Config")
    _has(_raylet.AuthenticationTokenLoader.instance(), "reset_cache")
    _has(_raylet.Config, "initialize")
    _has(internal_kv, "_internal_kv_get", "_internal_kv_put", "_internal_kv_del")


def ray_serve() -> None:
    from ray.serve import context
    from ray.serve._private import constants
    from ray.serve._private.client import ServeControllerClient

    _has(constants, "SERVE_CONTROLLER_NAME", "SERVE_NAMESPACE")
    _has(context, "_get_global_client")
    _has(ServeControllerClient, "wait_for_proxies_serving")


def ray_worker_error() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    from aift_ray.ray_backend.ray_compat import worker_error

    error = ValueError("x")
    assert worker_error(UserExceptionWithTraceback(error, traceback_str="")) is error


def ray_train_callbacks() -> None:
    from aift_ray.ray_backend import ray_train_compat as compat
    from aift_ray.ray_backend.elastic import SaveBeforeResize

    bases = (compat.ControllerCallback, compat.WorkerGroupCallback)
    for name in vars(SaveBeforeResize):
        if name.startswith(("after_", "before_")):
            assert any(hasattr(base, name) for base in bases), f"Ray calls no {name} any more"


def ray_train_policy() -> None:
    from aift_ray.ray_backend import ray_train_compat as compat

    parameters = inspect.signature(compat.DefaultFailurePolicy.make_decision).parameters
    assert "training_failed_error" in parameters
    _has(compat.FailureDecision, "RAISE")


def ray_trainer() -> None:
    import ray.train.torch
    from ray.train.v2._internal.execution import controller

    from aift_ray.ray_backend import ray_train_compat as compat

    theirs: Any = ray.train.torch.TorchTrainer
    _has(theirs, "_initialize_and_run_controller", "_create_default_callbacks")
    assert "failure_policy" in inspect.getsource(theirs._initialize_and_run_controller) or (
        "failure_policy" in inspect.signature(controller.TrainController.__init__).parameters
    )
    assert compat._CLEANER in inspect.getsource(inspect.getmodule(theirs._create_default_callbacks))


def ray_tune() -> None:
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    from aift_ray.ray_backend.ray_train_compat import compared_by, rungs

    about = {"time_attr": "step", "metric": "eval_loss", "mode": "min"}
    asha = ASHAScheduler(**about)
    assert compared_by(asha) == compared_by(MedianStoppingRule(**about)) == ("eval_loss", "min")
    assert all(callable(bracket.cutoff) for bracket in rungs(asha))


def transformers_classes() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

    from aift_ray.models import transformers_compat as compat

    names = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**names, num_attention_heads=1, num_key_value_heads=1)
    model = compat.from_config(LlamaForCausalLM, config)
    assert isinstance(model, LlamaForCausalLM)
    assert compat.takes_flash_attention(LlamaForCausalLM)
    assert compat.ignored_on_save(model) == set()
    _has(PreTrainedModel, compat.IGNORED_ON_LOAD)
    block: Any = model.model.layers[0]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert compat.recomputed(block, lambda x: x + 1, torch.ones(1)) == 2


def transformers_initialization() -> None:
    from transformers import modeling_utils

    from aift_ray.models import transformers_compat as compat

    flag = "_is_hf_initialized"
    assert flag in inspect.getsource(modeling_utils)
    module = nn.Linear(1, 1)
    module.__dict__[flag] = True
    compat.forget_initialized(module)
    assert flag not in vars(module)


def transformers_vocabulary() -> None:
    from transformers import GemmaTokenizer

    from aift_ray.models import transformers_compat as compat

    letters = {token: number for number, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>"])}
    letters |= {token: number for number, token in enumerate(("今", "日", "今日"), 4)}
    tokenizer = GemmaTokenizer(letters, [("今", "日")])
    assert {"_vocab", "_merges"} <= {*vars(tokenizer)}
    whole = tokenizer("今日日<unk>今")["input_ids"], tokenizer.get_vocab()
    written = tokenizer.backend_tokenizer.to_str()
    compat.forget_vocabulary(tokenizer)
    assert not vars(tokenizer)["_vocab"]
    assert not vars(tokenizer)["_merges"]
    assert whole == (tokenizer("今日日<unk>今")["input_ids"], tokenizer.get_vocab())
    assert 6 in whole[0]
    assert written == tokenizer.backend_tokenizer.to_str()


def transformers_conversions() -> None:
    from transformers import core_model_loading

    assert "_weight_conversions" in inspect.getsource(core_model_loading)


def peft_layers() -> None:
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    from aift_ray.models.lora import peft_compat as compat

    torch.manual_seed(0)
    config = LoraConfig(init_lora_weights=False)
    layer = Linear(nn.Linear(2, 2), "default", config=config, r=1)
    cast: list[torch.dtype] = []

    def casting(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        cast.append(dtype)
        return x

    compat.cast_inputs_by(layer, casting)
    x = torch.ones(1, 2)
    with_adapters = layer(x)
    assert cast == [torch.float32]
    compat.disable_adapters(layer, True)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert not torch.equal(layer(x), with_adapters)
    assert any(p.requires_grad for p in layer.parameters())


def bitsandbytes_packing() -> None:
    from bitsandbytes import functional

    _has(functional, "_convert_weight_packed_for_cpu_inverse")


def deepspeed_zero() -> None:
    _installed("deepspeed")
    import deepspeed.ops
    from deepspeed.runtime import utils
    from deepspeed.runtime.zero import partition_parameters, stage3, stage_1_and_2
    from torch.utils import cpp_extension

    _has(deepspeed.ops, "__compatible_ops__")
    _has(cpp_extension, "_get_build_directory")
    assert "os.path.join(build_directory, 'lock')" in inspect.getsource(cpp_extension)
    _has(utils, "combine_grad_norm_groups")
    swapping = ("_swappable_optimizer_subgroup", "_optimizer_states_and_gradient_swap_in")
    swapping += ("_optimizer_states_and_gradient_swap_out",)
    _has(stage3.DeepSpeedZeroOptimizer_Stage3, "_get_norm_groups", *swapping)
    # what `partition` calls on a weight
    source = inspect.getsource(partition_parameters.Init._convert_to_deepspeed_param)
    assert "param.convert_to_zero_parameters = convert_to_zero_parameters" in source
    ours = ("_lazy_init_hp_params_optimizer_state", "scaled_global_norm")
    _has(stage_1_and_2.DeepSpeedZeroOptimizer, *ours)


def openpyxl_sheets() -> None:
    from openpyxl.worksheet._read_only import ReadOnlyWorksheet

    _has(ReadOnlyWorksheet, "_get_source")


def lm_eval_filters() -> None:
    _installed("lm_eval")
    from lm_eval.api.task import ConfigurableTask

    assert "_filters" in inspect.getsource(ConfigurableTask)


def torch_mkldnn() -> None:
    from aift_ray.serving.engines.transformers import mkldnn_compat

    weight, bias, states = torch.randn(8, 6), torch.randn(8), torch.randn(4, 6)
    made = mkldnn_compat.linear(states, mkldnn_compat.reordered(weight, 4), bias)
    assert torch.allclose(made, nn.functional.linear(states, weight, bias), atol=1e-5)
    assert isinstance(mkldnn_compat.takes_bfloat16(), bool)


def vllm_statistics() -> None:
    _installed("vllm")
    from aift_ray.serving.engines.vllm.vllm_compat import stat_logger_base

    _has(stat_logger_base(), "record", "log_engine_initialized")


def vllm_weights() -> None:
    _installed("vllm")
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.v1.worker.gpu_worker import Worker

    _has(Worker, "reload_weights", "get_model")
    assert issubclass(ParallelLMHead, nn.Module)


def llama_cpp_quantizers() -> None:
    _installed("xllamacpp")
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    from aift_ray.conversion import xllamacpp_compat as compat

    rows = np.linspace(-1, 1, 1024, dtype=np.float32).reshape(2, 512)
    kind = GGMLQuantizationType.Q8_0
    assert np.array_equal(compat.quantize(rows, kind), quantize(rows, kind))


CHECKS = [
    torch_mkldnn,
    torch_store,
    torch_shard_offsets,
    torch_modules,
    torch_forward,
    torch_scaler,
    ray_core,
    ray_serve,
    ray_worker_error,
    ray_train_callbacks,
    ray_train_policy,
    ray_trainer,
    ray_tune,
    transformers_classes,
    transformers_initialization,
    transformers_vocabulary,
    transformers_conversions,
    peft_layers,
    bitsandbytes_packing,
    deepspeed_zero,
    openpyxl_sheets,
    lm_eval_filters,
    llama_cpp_quantizers,
    vllm_statistics,
    vllm_weights,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_installed_version_still_has_it(check: Callable[[], None]) -> None:
    check()
