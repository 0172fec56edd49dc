"""`aift-ray serve` as a user starts it: a command, Ray Serve, HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from aift_ray.config import ServeConfig
from aift_ray.ray_backend import serve_app
from aift_ray.serve import run
from aift_ray.serving.engines.engine_select import Choice
from aift_ray.utils.exit_status import guarded
from tests.conftest import ROOT, SHIPPED
from tests.helpers.ports import free_port
from tests.helpers.served import LONG, Served
from tests.serving.conftest import write_adapter
from tests.serving.http.test_openai_api import QUESTION


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    adapter = write_adapter(folder / "kansai", 3)
    made = Served(folder, "--adapter", f"kansai={adapter}", "--serving.slots", "2")
    yield made
    if made.process.poll() is None:
        made.process.send_signal(signal.SIGTERM)
        made.process.wait(60)


@pytest.mark.ray
def test_the_openai_client_streams_from_the_command(served: Served) -> None:
    client = openai.OpenAI(api_key=served.key, base_url=f"http://127.0.0.1:{served.port}/v1")
    assert [model.id for model in client.models.list()] == ["hina-4m", "kansai"]
    asked: dict[str, Any] = {"model": "kansai", "prompt": "昔々、", "max_tokens": 30}
    whole = client.completions.create(**asked, temperature=0)
    chunks = list(client.completions.create(**asked, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="wrong", base_url=client.base_url, max_retries=0).models.list()


@pytest.mark.ray
def test_hugging_faces_client_gets_the_same_answers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    url = f"http://127.0.0.1:{served.port}/v1"
    client = InferenceClient(base_url=url, api_key=served.key)
    asked: dict[str, Any] = {"messages": QUESTION, "max_tokens": 24, "temperature": 0}
    for model in ("hina-4m", "kansai"):
        other = openai.OpenAI(api_key=served.key, base_url=url).chat.completions
        wanted = other.create(model=model, **asked).choices[0]
        whole = client.chat_completion(model=model, logprobs=True, top_logprobs=2, **asked)
        assert whole.choices[0].message.content == wanted.message.content
        assert whole.choices[0].finish_reason == wanted.finish_reason
        assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
        options = {"include_usage": True}
        chunks = list(
            client.chat_completion(model=model, stream=True, stream_options=options, **asked)
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == wanted.message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(base_url=url, api_key="wrong").chat_completion(model="hina-4m", **asked)
    with pytest.raises(HfHubHTTPError, match="404"):
        client.chat_completion(model="another", **asked)


@pytest.mark.ray
def test_a_client_that_goes_away_frees_its_slot(served: Served) -> None:
    with served.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert served.running() == 1
    with pytest.raises(httpx.ReadTimeout):
        served.http.post("/v1/completions", json=LONG | {"n": 2}, timeout=0.3)
    end = time.monotonic() + 2
    while served.running():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.ray
def test_the_made_key_is_its_owners_alone(served: Served) -> None:
    files = list((served.log.parent / "state").rglob("key-*"))
    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o600"]
    assert served.log.read_text("utf-8").count(served.key) == 1


@pytest.mark.ray
def test_the_command_says_what_it_does(served: Served) -> None:
    log = served.log.read_text("utf-8")
    told = (
        "starting Ray and Serve",
        "checking the model",
        "the model is checked",
        "loading the model in the replicas",
        "engine",
        "ready on",
    )
    places = [log.index(each) for each in told]
    assert places == sorted(places)


def test_the_command_reads_no_model(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", 0)
    program = (
        "import sys\n"
        "from aift_ray.config import ServeConfig\n"
        "from aift_ray.ray_backend import serve_app, serve_run, server_start\n"
        "from aift_ray.serving import served_models\n"
        "config = served_models.on_base(ServeConfig(model=sys.argv[1]))\n"
        "serve_app.deployment(config, None, {'CPU': 2.0}, server_start.ServerStart('x'))\n"
        "print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", program, str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def token_beyond(folder: Path) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<追加{number}>" for number in range(100)])
    tokenizer.bos_token = "<追加99>"
    tokenizer.save_pretrained(folder)
    return []


def cut_weights(folder: Path) -> list[str]:
    [file] = folder.glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return []


def missing_tensor(folder: Path) -> list[str]:
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    weights.pop("model.norm.weight")
    save_file(weights, file, metadata={"format": "pt"})
    return []


def cut_adapter(folder: Path) -> list[str]:
    adapter = write_adapter(folder.parent / "adapter", 3)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    return ["--adapter", f"x={adapter}"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (token_beyond, "<追加99>"),
        (cut_weights, "model.safetensors"),
        (missing_tensor, "model.norm.weight"),
        (cut_adapter, "adapter_model.safetensors"),
    ],
)
def test_what_is_wrong_inside_is_exit_2(
    tmp_path: Path, damage: Callable[[Path], list[str]], told: str
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(SHIPPED, folder)
    flags = damage(folder)
    command = [sys.executable, "-m", "aift_ray.serve", "--model", str(folder), "--no-auth"]
    command += ["--port", str(free_port()), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "ready on" not in done.stdout


@pytest.mark.ray
def test_a_stopped_server_ends_its_answers_first(served: Served) -> None:
    told: list[str] = []

    def listen() -> None:
        body = LONG | {"stream": True, "max_tokens": 200}
        with served.http.stream("POST", "/v1/completions", json=body) as response:
            told.extend(line for line in response.iter_lines() if line)

    listener = threading.Thread(target=listen)
    listener.start()
    while not told:
        time.sleep(0.02)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(90) == 0
    listener.join(10)
    assert told[-1] == "data: [DONE]"
    assert json.loads(told[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    log = served.log.read_text("utf-8").splitlines()
    assert log[-1] == "stopping after the answers under way"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--host", "0.0.0.0", "--no-auth"], "anybody could use the model"),
        (["--no-auth", "--api-key-file", "keys"], "contradicts api_key_file"),
        (["--api-key-file", "absent"], "can't be read"),
        (["--api-key-file", "empty"], "holds no key"),
        (["--adapter", "x"], "is not NAME=FOLDER"),
        (["--adapter", "a/b=folder"], "holds a '/'"),
        (["--adapter", "x=folder"], "no such folder: folder"),
        (["--num-replicas", "4:1"], "MIN not above MAX"),
        (["--model", "nothing"], "no such folder"),
        (["--dtype", "fp16"], "needs a GPU"),
        (["--port", "0"], "port"),
    ],
)
def test_what_can_not_be_served_is_refused_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("# none\n", "utf-8")
    assert guarded(run, flags) == 2
    assert told in capsys.readouterr().err


def test_the_threads_of_a_replica_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(engine: Literal["transformers", "vllm"]) -> str | None:
        monkeypatch.setattr(serve_app, "engine_of", lambda *_: Choice(engine, "as set"))
        made = serve_app.deployment(ServeConfig(), None, {"CPU": 2})
        variables = made._bound_deployment.ray_actor_options["runtime_env"]["env_vars"]
        assert variables["OMP_NUM_THREADS"] == "2"
        policy: str | None = variables.get("OMP_WAIT_POLICY")
        return policy

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert told("transformers") == "PASSIVE"
    assert told("vllm") is None
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert told("transformers") == "ACTIVE"


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_home_that_can_not_be_written_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dry_run: list[str],
) -> None:
    for name in ("XDG_STATE_HOME", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").write_text("", "utf-8")
    # what may be written by its mode, and can't be all the same
    for home in (tmp_path / "home", Path("/proc/nothing")):
        if dry_run and home.parent != tmp_path:
            continue
        monkeypatch.setenv("HOME", str(home))
        assert guarded(run, dry_run) == 2
        told = capsys.readouterr().err
        assert str(home / ".local" / "state" / "aift_ray") in told
        assert "--api-key-file" in told


def test_an_adapter_of_another_template_or_base_is_refused_with_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "adapter", 0)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text("utf-8").replace("assistant", "bot"), "utf-8")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = "elyza/Llama-3-ELYZA-JP-8B"
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    assert guarded(run, ["--adapter", f"x={folder}", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "was trained on elyza/Llama-3-ELYZA-JP-8B" in told
    assert "another chat template than the model: line" in told
