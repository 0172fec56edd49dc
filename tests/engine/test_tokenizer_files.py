"""The tokenizer of saved models, and how long a worker keeps it."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from aift_ray.engine.build import build
from aift_ray.engine.tokenizer_files import TokenizerFiles
from aift_ray.engine.validate import Validator
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests.conftest import write_rows
from tests.helpers.whole_runs import ALONE, Killed, run

Configure = Callable[..., Any]


def test_saved_models_hold_what_the_tokenizer_writes(configure: Configure, tmp_path: Path) -> None:
    folder, template = tmp_path / "run", "{{ bos_token }}{% for m in messages %}{{ m['content'] }}"
    own = tmp_path / "own.jinja"
    own.write_text(template + "{{ eos_token }}{% endfor %}", "utf-8")
    config = configure(training__save_steps=1, data__chat_template=str(own))
    with pytest.raises(Killed):
        run(config, folder, kill_at=1)
    done = run(config, folder)
    done.job.load_tokenizer().save_pretrained(tmp_path / "alone")
    names = [path.name for path in (tmp_path / "alone").iterdir()]
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} == set(names)
    for saved in (folder / "model", *sorted((folder / "checkpoints").iterdir())):
        same = filecmp.cmpfiles(tmp_path / "alone", saved, names, shallow=False)
        assert same == (names, [], []), saved
    assert not [path for path in folder.iterdir() if "tokenizer" in path.name]


@pytest.mark.parametrize("rows", [0, 2])
def test_a_tokenizer_is_kept_where_texts_are_read(
    configure: Configure, tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", 4, 100)
    config = configure(data__eval_files=[str(held_out)], training__exact_match_rows=rows)
    prepared = prepare(config, tmp_path / "run", 1, False, None)
    run_dir.start(prepared.job.config, tmp_path / "run")
    job, tokenizers = prepared.job, [prepared.encoder.tokenizer]
    written: list[PreTrainedTokenizerBase] = []
    monkeypatch.setattr(TokenizerFiles, "write", lambda self, tokenizer: written.append(tokenizer))
    built = build(job, ALONE, tokenizer=tokenizers.pop)
    assert len(written) == 1, "worker 0 alone writes, once"
    validator = built.evaluator
    assert isinstance(validator, Validator)
    assert validator.tokenizer is (written[0] if rows else None)
