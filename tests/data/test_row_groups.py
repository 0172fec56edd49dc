"""What is held out is in no part of what is trained; what is nearly the same is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from aift_ray.commandline import validated
from aift_ray.config import DataConfig
from aift_ray.data import token_cache
from aift_ray.data.minhash import Index, links, signatures
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.token_cache import Prepared
from aift_ray.engine.step_plan import split
from aift_ray.errors import ConfigError, DataError
from tests.conftest import SHARED, SHIPPED

TEXTS = [f"{name}の話である。" * 60 for name in ("東京", "猫", "海", "数学", "料理", "歴史")]
LONG = (
    "昔々あるところに、おじいさんとおばあさんが住んでいました。ある日、おじいさんは山へ行きました。"
)

ROWS = [
    {"text": LONG},
    {"text": TEXTS[1]},
    {"instruction": "要約して", "input": TEXTS[2][:90], "output": "はい。"},
]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, "utf-8")
    return str(path)


def made(tmp_path: Path, length: int = 64, **data: Any) -> Prepared:
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))
    return token_cache.prepare(
        DataConfig(cache_dir=str(tmp_path / "cache"), **data), encoder, length
    )


def parted(prepared: Prepared, fraction: float, seed: int = 42) -> tuple[set[str], set[str]]:
    """The places of what is trained, and of what is held out."""
    values = {"data": {"validation_fraction": fraction}, "training": {"seed": seed}}
    rows = prepared.rows("train")
    both = split(validated(values), prepared.groups(), 0)
    assert sorted(np.concatenate(both).tolist()) == list(range(len(rows)))
    trained, held_out = ({rows.place(int(i)) for i in part} for part in both)
    assert held_out
    return trained, held_out


def test_a_document_is_trained_or_held_out_never_both(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    prepared = made(tmp_path, train_files=[file], validation_fraction=0.2)
    assert prepared.train.rows > 12
    for seed in range(5):
        trained, held_out = parted(prepared, 0.2, seed)
        assert not trained & held_out
        assert len(held_out) == 1


def test_duplicates_answers_to_a_prompt_and_near_duplicates_stay_together(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(20):
        question = f"第{number}問、{number * number}の平方根は何ですか。"
        rows.append({"instruction": question, "output": f"{number}です。"})
    kinds = [
        [{"text": "同じ文です。" * 3}] * 4,
        [{"instruction": "色は？", "output": answer} for answer in ("赤です。", "青です。")],
        [{"text": LONG}, {"text": LONG.replace("山", "川", 1)}, {"text": "　" + LONG}],
    ]
    rows += [row for kind in kinds for row in kind]
    file = written(tmp_path / "a.jsonl", rows)
    prepared = made(tmp_path, 512, train_files=[file], validation_fraction=0.3)
    first = 21
    for seed in range(8):
        trained, held_out = parted(prepared, 0.3, seed)
        assert not trained & held_out
        line = first
        for kind in kinds:
            places = {f"{file}:{line + number}" for number in range(len(kind))}
            assert places <= trained or places <= held_out
            line += len(kind)
    assert any("nearly equal to others" in warning for warning in prepared.warnings)


def test_rows_of_one_group_each_are_split_as_rows(tmp_path: Path) -> None:
    values = {"data": {"validation_fraction": 0.25}, "training": {"seed": 3}}
    trained, held_out = split(validated(values), np.arange(40, dtype=np.int32), 0)
    order = np.random.default_rng([3, 2**31]).permutation(40)
    assert held_out.tolist() == sorted(order[:10].tolist())
    assert trained.tolist() == sorted(order[10:].tolist())


def test_a_group_larger_than_the_share_leaves_room_for_others() -> None:
    groups = np.array([0] * 90 + list(range(90, 100)), np.int32)
    values = {"data": {"validation_fraction": 0.05}}
    trained, held_out = split(validated(values), groups, 0)
    assert len(held_out) == 5
    assert set(trained.tolist()) >= set(range(90))


def test_one_group_can_not_be_split(tmp_path: Path, tiny_model: Path) -> None:
    from aift_ray.runs.prepare import prepare

    file = written(tmp_path / "a.jsonl", [{"text": TEXTS[0]}] * 3)
    data = {"train_files": [file], "validation_fraction": 0.5, "cache_dir": str(tmp_path)}
    config = validated({"model": str(tiny_model), "data": data})
    with pytest.raises(ConfigError, match="none can be held out"):
        prepare(config, tmp_path / "run", 1, False, None)


class TestNearDuplicates:
    def held_out(self, tmp_path: Path) -> str:
        return written(tmp_path / "eval.jsonl", [{"text": LONG.replace("山", "海", 1)}])

    @pytest.mark.parametrize(("what", "left"), [("count", 3), ("drop", 2), ("off", 3)])
    def test_training_rows_nearly_of_the_evaluation_are_counted_or_dropped(
        self, tmp_path: Path, what: str, left: int
    ) -> None:
        file, other = written(tmp_path / "train.jsonl", ROWS), self.held_out(tmp_path)
        prepared = made(tmp_path, 512, train_files=[file], eval_files=[other], near_duplicates=what)
        assert prepared.train.rows == left
        said = " ".join(prepared.warnings)
        if what == "off":
            assert "nearly" not in said
            return
        assert "near-duplicates of evaluation rows among the training rows: 1, " in said
        assert f"{file}:1 (see {other}:1)" in said
        assert ("--data.near_duplicates drop" in said) == (what == "count")

    def test_the_threshold_decides(self, tmp_path: Path) -> None:
        file, other = written(tmp_path / "train.jsonl", ROWS), self.held_out(tmp_path)
        data = {"train_files": [file], "eval_files": [other], "near_duplicates": "drop"}
        assert made(tmp_path, 512, near_duplicate_threshold=0.95, **data).train.rows == 3

    def test_a_test_is_found_in_a_prompt_whatever_its_keys(self, tmp_path: Path) -> None:
        question = "電子機器で使用される最も主要な電子回路基板の事をなんと言う？"
        rows = [{"instruction": question, "output": "マザーボードです。" * 9}, *ROWS]
        file = written(tmp_path / "train.jsonl", rows)
        test = [{"id": "1", "question": question, "choices": ["掲示板", "まな板"], "label": 2}]
        tests = written(tmp_path / "test.jsonl", test)
        prepared = made(
            tmp_path,
            512,
            train_files=[file],
            contamination_files=[tests],
            near_duplicates="drop",
        )
        assert prepared.train.rows == 3
        said = " ".join(prepared.warnings)
        assert "of rows of data.contamination_files among the training rows: 1, left out" in said
        assert f"{file}:1 (see {tests}:1)" in said

    @pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
    def test_tests_in_tables_are_read(self, tmp_path: Path, kind: str) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        path = tmp_path / f"test.{kind}"
        row = {"番号": 1, "設問": LONG, "選択肢": "一"}
        if kind == "parquet":
            parquet.write_table(pa.Table.from_pylist([row]), path)
        elif kind == "json":
            path.write_text(json.dumps([row]), "utf-8")
        else:
            path.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())), "utf-8")
        file = written(tmp_path / "train.jsonl", ROWS)
        data = {"train_files": [file], "contamination_files": [str(path)]}
        prepared = made(tmp_path, 512, near_duplicates="drop", **data)
        assert prepared.train.rows == 2

    def test_a_wrong_file_of_tests_is_told(self, tmp_path: Path) -> None:
        file = written(tmp_path / "train.jsonl", ROWS)
        (tmp_path / "test.jsonl").write_text("{", "utf-8")
        with pytest.raises(DataError, match=r"test[.]jsonl:1: not JSON"):
            made(tmp_path, train_files=[file], contamination_files=[str(tmp_path / "test.jsonl")])

    def test_files_of_tests_that_are_not_looked_at_are_refused(self) -> None:
        data = {"contamination_files": ["a.jsonl"], "near_duplicates": "off"}
        with pytest.raises(ConfigError, match=r"data[.]contamination_files"):
            validated({"data": data})


class TestMinHash:
    def test_the_estimate_is_near_the_share_of_runs_in_common(self) -> None:
        texts = _texts()
        rng = np.random.default_rng(0)
        errors = []
        for text in texts:
            start = int(rng.integers(0, len(text)))
            cut = text[:start] + text[start + len(text) // 8 :]
            one, other = signatures([text, cut])
            true = _jaccard(text, cut)
            errors.append(float((one == other).mean()) - true)
        assert abs(np.mean(errors)) < 0.01
        assert np.abs(errors).max() < 0.2

    def test_a_signature_depends_on_its_text_alone(self) -> None:
        texts = ["", "あ", "短い文", *_texts()[:40], "😀" * 9]
        together = signatures(texts)
        for text, row in zip(texts, together, strict=True):
            assert (signatures([text])[0] == row).all()
        wide = signatures(["ＡＢＣ　ｄｅｆ 123", "abcdef123"])
        assert (wide[0] == wide[1]).all()

    def test_what_is_found_is_what_all_pairs_give(self) -> None:
        texts = _texts()[:120]
        changed = [t.replace("。", "！", 2) for t in texts[::3]]
        found, asked = signatures(texts), signatures(changed)
        for threshold in (0.5, 0.8):
            alike = (asked[:, None, :] == found[None]).mean(axis=2) >= threshold
            expected = [int(np.argmax(row)) if row.any() else None for row in alike]
            got = Index(found, threshold).like(asked)
            assert sum(a != b for a, b in zip(got, expected, strict=True)) <= 1
        both = signatures([*texts, *changed])
        pairs = {(a, b) for a, b in links(both, 0.8)}
        assert {b for _, b in pairs} >= {
            120 + n for n, t in enumerate(texts[::3]) if _jaccard(t, changed[n]) > 0.93
        }
        assert not list(links(signatures([]), 0.8))


def _texts() -> list[str]:
    file = SHARED / "data" / "instruction" / "dolly_ja.eval.jsonl"
    if not file.exists():
        pytest.skip("the shared test data are not here")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [row["instruction"] + row["output"] for row in rows if len(row["output"]) > 60]


def _jaccard(one: str, other: str) -> float:
    a, b = ({"".join(t.split())[i : i + 5] for i in range(len(t))} for t in (one, other))
    return len(a & b) / len(a | b)
