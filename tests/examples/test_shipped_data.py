"""The shipped instruction task: right conjugation, real hold-out, files equal to their script."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples" / "shipped_model"
ASSETS = ROOT / "aift_ray" / "data" / "assets" / "keitai"
sys.path.insert(0, str(SCRIPTS))

import conjugation  # noqa: E402
import copy_tasks  # noqa: E402
import make_corpus  # noqa: E402
import make_instructions  # noqa: E402
import make_preferences  # noqa: E402
import make_tokenizer  # noqa: E402
import sentences  # noqa: E402

POLITE_ENDINGS = (
    *("です。", "ます。", "ました。", "ません。"),
    *("でした。", "ましょう。", "でしょう。"),
)

# word, class, form, plain, polite; written by hand.
VERBS = """
買う 五 past 買った 買いました
買う 五 negative 買わない 買いません
買う 五 volitional 買おう 買いましょう
待つ 五 past 待った 待ちました
待つ 五 negative_past 待たなかった 待ちませんでした
待つ 五 obligation 待たなければならない 待たなければなりません
帰る 五 past 帰った 帰りました
帰る 五 negative 帰らない 帰りません
帰る 五 desire 帰りたい 帰りたいです
飲む 五 past 飲んだ 飲みました
飲む 五 progressive 飲んでいる 飲んでいます
飲む 五 excess 飲みすぎた 飲みすぎました
遊ぶ 五 past 遊んだ 遊びました
遊ぶ 五 volitional 遊ぼう 遊びましょう
死ぬ 五 past 死んだ 死にました
死ぬ 五 negative 死なない 死にません
書く 五 past 書いた 書きました
書く 五 completion 書いてしまった 書いてしまいました
書く 五 thought 書こうと思う 書こうと思います
行く 五 past 行った 行きました
行く 五 progressive_past 行っていた 行っていました
泳ぐ 五 past 泳いだ 泳ぎました
泳ぐ 五 trial 泳いでみた 泳いでみました
話す 五 past 話した 話しました
話す 五 negative 話さない 話しません
話す 五 beginning 話し始めた 話し始めました
食べる 一 nonpast 食べる 食べます
食べる 一 past 食べた 食べました
食べる 一 volitional 食べよう 食べましょう
食べる 一 desire_negative 食べたくない 食べたくないです
見る 一 negative_past 見なかった 見ませんでした
見る 一 progressive_negative 見ていない 見ていません
掃除する サ nonpast 掃除する 掃除します
掃除する サ past 掃除した 掃除しました
掃除する サ negative 掃除しない 掃除しません
掃除する サ volitional 掃除しよう 掃除しましょう
来る カ nonpast 来る 来ます
来る カ past 来た 来ました
来る カ negative 来ない 来ません
来る カ volitional 来よう 来ましょう
ある 五 nonpast ある あります
ある 五 past あった ありました
ある 五 negative ない ありません
ある 五 negative_past なかった ありませんでした
読む 五 ability 読むことができる 読むことができます
読む 五 intention 読むつもりだ 読むつもりです
読む 五 conjecture 読むだろう 読むでしょう
読む 五 possibility 読むかもしれない 読むかもしれません
読む 五 hearsay 読むそうだ 読むそうです
読む 五 desire_past 読みたかった 読みたかったです
高い い nonpast 高い 高いです
高い い past 高かった 高かったです
高い い negative 高くない 高くないです
高い い negative_past 高くなかった 高くなかったです
高い い change 高くなった 高くなりました
いい い nonpast いい いいです
いい い past よかった よかったです
いい い negative よくない よくないです
いい い conjecture いいだろう いいでしょう
静か な nonpast 静かだ 静かです
静か な past 静かだった 静かでした
静か な negative 静かではない 静かではありません
静か な negative_past 静かではなかった 静かではありませんでした
医者 な conjecture 医者だろう 医者でしょう
医者 な change 医者になった 医者になりました
"""


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("line", VERBS.strip().splitlines())
def test_a_predicate_is_conjugated_in_both_styles(line: str) -> None:
    word, kind, form, plain, polite = line.split()
    assert conjugation.conjugate(word, kind, form) == (plain, polite)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(KeyError):
        conjugation.conjugate("高い", "い", "volitional")


def test_the_files_are_what_the_script_writes(tmp_path: Path) -> None:
    make_instructions.main(["--output", str(tmp_path)])
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / name).read_bytes() == (ASSETS / name).read_bytes()


def test_the_pairs_are_what_their_script_writes(tmp_path: Path) -> None:
    make_preferences.main(["--output", str(tmp_path)])
    for name in ("preferences.jsonl", "preferences-eval.jsonl"):
        assert (tmp_path / name).read_bytes() == (ASSETS / name).read_bytes()
        rows = [json.loads(line) for line in (ASSETS / name).read_text("utf-8").splitlines()]
        assert f"| `{name}` | {len(rows)} |" in (ASSETS / "README.md").read_text("utf-8")
        assert all(row["chosen"].endswith(POLITE_ENDINGS) for row in rows)
        assert all(row["rejected"] != row["chosen"] for row in rows)
        hard = sum(row["rejected"] != row["input"] for row in rows)
        assert 0.3 < hard / len(rows) < 0.5, "polite and wrong"


def test_the_counts_are_those_of_the_readme() -> None:
    assert (len(rows("train.jsonl")), len(rows("eval.jsonl"))) == (3000, 400)


def test_every_output_is_polite_and_differs_from_its_input() -> None:
    for row in rows("train.jsonl") + rows("eval.jsonl"):
        assert row["output"].endswith(POLITE_ENDINGS), row
        # 励ます。 and 励ました。 are plain.
        assert not row["input"].replace("励ま", "").endswith(POLITE_ENDINGS), row
        assert row["input"] != row["output"]
        assert 8 <= len(row["input"]) <= 30


def test_no_sentence_is_twice_or_in_both_files() -> None:
    inputs = [row["input"] for row in rows("train.jsonl") + rows("eval.jsonl")]
    assert len(set(inputs)) == len(inputs)


def test_no_held_out_core_is_trained() -> None:
    train, held = make_instructions.choose(make_instructions.SEED, 3000, 400)
    assert [row["input"] for row in rows("train.jsonl")] == [one.plain for one in train]
    assert [row["input"] for row in rows("eval.jsonl")] == [one.plain for one in held]
    assert {one.core for one in train}.isdisjoint(one.core for one in held)
    assert all(sentences.is_held_out(one.core) for one in held)
    assert not any(sentences.is_held_out(one.core) for one in train)


def test_every_predicate_of_eval_is_trained_with_other_words() -> None:
    train, held = make_instructions.choose(make_instructions.SEED, 3000, 400)
    assert {one.core[1] for one in held} <= {one.core[1] for one in train}


def test_the_same_seed_makes_the_same_sentences() -> None:
    first, second = (list(itertools.islice(sentences.Grammar(5), 200)) for _ in range(2))
    assert first == second


def test_a_sentence_of_the_pretraining_text_is_in_one_style_and_not_held_out() -> None:
    made = list(itertools.islice(make_corpus.styled_sentences(1), 4000))
    texts = {one.text for one in made}
    pairs = {one.plain: one.polite for one in itertools.islice(sentences.Grammar(1), 5000)}
    assert not any(plain in texts and polite in texts for plain, polite in pairs.items())
    held = {text for row in rows("eval.jsonl") for text in (row["input"], row["output"])}
    assert texts.isdisjoint(held)
    assert {one.polite for one in made} == {False, True}


def test_chat_rows_never_change_the_style(tmp_path: Path) -> None:
    corpus = tmp_path / "aozora.jsonl"
    corpus.write_text(
        '{"text": "山路を登った。こう考えた。棹させば流される。"}\n', encoding="utf-8"
    )
    synthetic = list(itertools.islice(make_corpus.styled_sentences(2), 500))
    literary = make_corpus.fragments(make_corpus.read_aozora(corpus))
    pools = (synthetic, [copy_tasks.Material(text, "", (), False) for text in literary])
    pairs = {one.plain: one.polite for one in itertools.islice(sentences.Grammar(2), 2000)}
    backward = {polite: plain for plain, polite in pairs.items()}
    for row in make_corpus.chat_rows(pools, 2000, random.Random(0)):
        text = row.get("input") or row["instruction"].split("\n")[1]
        assert row["output"] not in (pairs.get(text), backward.get(text))


def test_the_tokenizer_keeps_every_string_and_splits_endings() -> None:
    pairs = itertools.islice(sentences.Grammar(3), 3000)
    texts = (text for one in pairs for text in (one.plain, one.polite))
    tokenizer = make_tokenizer.train_tokenizer(texts)
    for text in ("昨日、弟は本を買いました。", "𠮷野家 \n\r\t👨‍👩‍👧 2024年", "ｶﾞ゙\x00 ABC　"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("食べました。")]
    assert pieces[-2:] == ["ました", "。"]
    adjective = tokenizer.encode("高い。")[:-1]
    assert tokenizer.encode("高いです。")[: len(adjective)] == adjective
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.bos_token is None
    assert "12" not in [tokenizer.decode([i]) for i in tokenizer.encode("12")]


def test_the_chat_template_is_chatml_without_a_system_prompt() -> None:
    tokenizer = make_tokenizer.train_tokenizer(iter(["こんにちは。"]))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "こんにちは。"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nこんにちは。<|im_end|>\n<|im_start|>assistant\n"
