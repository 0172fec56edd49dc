"""How many functions a reader passes on the way of a setting, a row, a checkpoint and a request.

The limits are what the code has: a further call on the way is one that needs a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aift_ray.engine.worker import work
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests.conftest import ROOT
from tests.helpers.command import flags
from tests.helpers.walks import Walk, anywhere, given, within
from tests.helpers.whole_runs import ALONE, Killed, run
from tests.serving.conftest import Site

# what no other text of a run holds
ROW = "目印の行"


WALK = """
import sys, traceback
from pathlib import Path
from aift_ray import train
from aift_ray.runs import supervise

fork, package = supervise.fork, str(Path(train.__file__).parent)

def forked(*given):
    attempt = fork(*given)
    import torch
    build = torch.optim.AdamW.__init__
    def built(*given, **named):
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(package)]
        Path("walk").write_text("\\n".join(f"{f.filename} {f.name}" for f in frames))
        build(*given, **named)
    torch.optim.AdamW.__init__ = built
    return attempt

supervise.fork = forked
sys.exit(train.run(sys.argv[1:]))
"""


def test_a_setting_from_the_command_to_the_optimizer(
    tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    argv = flags(
        tiny_model, rows_file, tmp_path / "run", **{"num-workers": 1, "training__max_steps": 1}
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WALK, *argv]
    subprocess.run(command, env=environment, cwd=tmp_path, timeout=200, check=True)
    walk = (tmp_path / "walk").read_text("utf-8").splitlines()
    files = {line.split()[0] for line in walk}
    # and AdamW
    assert len(walk) + 1 <= 8, walk
    assert len(files) <= 5, walk


@pytest.fixture
def config(configure: Callable[..., Any], tmp_path: Path) -> Any:
    rows = tmp_path / "rows.jsonl"
    row = {"instruction": ROW, "output": "はい、そうです。"}
    rows.write_text(f"{json.dumps(row, ensure_ascii=False)}\n" * 8, "utf-8")
    return configure(data__train_files=[str(rows)], training__save_steps=1)


def test_a_row_from_its_file_to_its_gradient(config: Any, tmp_path: Path) -> None:
    walk = Walk()
    read = {"JSONDecoder.raw_decode": given(ROW), "Tokenizer.encode_batch_fast": given(ROW)}
    prepared = walk.over(lambda: prepare(config, tmp_path / "run", 1, False, None), read)
    run_dir.start(prepared.job.config, tmp_path / "run")
    # from the token cache to a tensor, through the model, and back
    step = ("frombuffer", "_VariableFunctionsClass.from_numpy", "embedding", "_engine_run_backward")
    places = dict.fromkeys(step, within("train_step"))
    walk.over(lambda: work(prepared.job, ALONE), places)
    walk.check(places=6, calls=35, files=15)


def test_a_checkpoint_to_the_disk_and_back(config: Any, tmp_path: Path) -> None:
    walk, written = Walk(), ("BufferedWriter.write", "serialize_file", "fsync", "Path.rename")
    places = {
        "Module.state_dict": within("snapshot"),
        "ThreadPoolExecutor.submit": within("CheckpointWriter.save"),
        **dict.fromkeys(written, within("CheckpointWriter._write")),
    }

    def killed() -> None:
        with pytest.raises(Killed):
            run(config, tmp_path / "run", kill_at=1)

    walk.over(killed, places)
    prepared = prepare(config, tmp_path / "run", 1, False, None)
    back = {
        "file_digest": within("damage"),
        "PreTrainedModel.from_pretrained": anywhere,
        "load_file": anywhere,
        "Optimizer.load_state_dict": anywhere,
    }
    resumed = walk.over(lambda: work(prepared.job, ALONE), back)
    assert resumed.resumed_from == 1
    walk.check(places=10, calls=25, files=11)


@pytest.fixture
def walked(tmp_path: Path) -> Iterator[tuple[Walk, Site]]:
    walk = Walk()
    # the engine's thread is to be looked at, too
    site = walk.over(lambda: Site(tmp_path, {}), {})
    yield walk, site
    site.close()


def test_a_chat_request_to_its_streamed_tokens(walked: tuple[Walk, Site]) -> None:
    walk, site = walked
    body = {
        "model": site.service.name,
        "messages": [{"role": "user", "content": ROW}],
        "max_tokens": 4,
        "stream": True,
        "logit_bias": {str(token): -100 for token in site.service.encoder.stop_ids},
    }
    places = {
        "JSONDecoder.raw_decode": given(ROW),
        "Template.render": anywhere,
        "Tokenizer.encode_batch_fast": anywhere,
        # to the engine's thread, through the model, and from its thread
        "Condition.notify": within("TransformersEngine.submit"),
        "embedding": anywhere,
        "Tensor.argmax": anywhere,
        "BaseEventLoop.call_soon_threadsafe": within("TokenStream.put"),
        "DecodeStream.step": anywhere,
        "dumps": within("event"),
    }
    url = "/v1/chat/completions"
    answer = walk.over(lambda: site.send("POST", url, json=body), places)
    assert answer.text.count('"content": "') > 1
    walk.check(places=len(places), calls=33, files=15)
