"""Fixtures that several test modules share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ports import free_port

pytest_plugins = ["tests.helpers.cluster_fixtures"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SHIPPED = ROOT / "aift_ray" / "models" / "assets" / "hina-4m"
KEITAI = ROOT / "aift_ray" / "data" / "assets" / "keitai"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of two processes one has all files with tests on Ray; those of another file stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "ray" if "pytest.mark.ray" in (ROOT / file).read_text("utf-8") else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with Ray, which take longest, come first."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Results depend on the number of threads; the workers compute on one."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token caches of the tests go to a folder of the session."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def make_tiny_model(folder: Path, kind: str = "llama", **numbers: Any) -> Path:
    """A random model of two small layers, with biases, and the shipped tokenizer.

    Args:
        kind: its model type; those other than llama have a vocabulary of odd size.
        numbers: of its configuration, where they are to be others.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(SHIPPED)
    if kind != "llama":
        names = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
        common = {name: getattr(config, name) for name in names} | {"num_hidden_layers": 2}
        # a window shorter than the rows, and a layer that has it
        window = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
        more = window if kind in ("gemma2", "gemma3_text") else {}
        config = AutoConfig.for_model(kind, **common, **more)
        config.vocab_size += 1
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 96, 2
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
    config.attention_bias = True
    for name, value in numbers.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder)
    return folder


def make_tiny_mixture(folder: Path, kind: str = "qwen3_moe", **numbers: Any) -> Path:
    """The same with four experts, of which each token takes two."""
    counted = "num_experts" if kind == "qwen3_moe" else "num_local_experts"
    sizes = {counted: 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    return make_tiny_model(folder, kind, **(sizes | numbers))


@pytest.fixture(scope="session")
def tiny_mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny mixture of experts."""
    return make_tiny_mixture(tmp_path_factory.mktemp("models") / "mixture")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def write_rows(path: Path, number: int = 24, offset: int = 0) -> Path:
    """Instruction rows of uneven length."""
    rows = [
        {
            "instruction": f"{i}番目の言葉を{'とても' * (i % 5)}大きな声で言ってください。",
            "output": f"はい、{i}番目は「{'花鳥風月'[: 1 + i % 4]}」です。" + "以上。" * (i % 7),
        }
        for i in range(offset, offset + number)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """24 training rows."""
    return write_rows(tmp_path / "train.jsonl")


@pytest.fixture
def configure(tiny_model: Path, rows_file: Path) -> Callable[..., Any]:
    """A RunConfig on the tiny model and rows; dotted names override, '__' for the dot."""
    from aift_ray.commandline import validated

    def make(**values: Any) -> Any:
        settings: dict[str, Any] = {
            "model": str(tiny_model),
            "method": "full",
            "data": {"train_files": [str(rows_file)], "sequence_length": 128},
            "training": {
                "learning_rate": 1e-2,
                "batch_size": 8,
                "gradient_accumulation_steps": 1,
                "num_epochs": 1,
                "warmup_steps": 0,
                "logging_steps": 1,
                "gradient_checkpointing": False,
            },
        }
        for name, value in values.items():
            *sections, last = name.split("__")
            place = settings
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return validated(settings)

    return make


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket of an S3-compatible server (moto) on the loopback address."""

    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    place = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            try:
                request = urllib.request.Request(f"{place}/runs", method="PUT")
                urllib.request.urlopen(request, timeout=2).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.2)
        yield f"s3://key:secret@runs/lab?scheme=http&endpoint_override=127.0.0.1:{port}&region=x"
    finally:
        server.terminate()
        server.wait(10)
