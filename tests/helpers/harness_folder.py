"""Runs tasks through lm-evaluation-harness, in an environment that has it.

python -m tests.helpers.harness_folder MODEL TASKS.json OUTPUT.json [BATCH [LARGEST]]

TASKS.json: a list of {name, kind, prompts, choices, labels, delimiter, stop, max_tokens}: prompts
are whole, with their examples. OUTPUT.json: of each task a list of log-likelihoods, or of answers.
BATCH: rows at once, or auto: as many as fit, LARGEST at most.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Score the tasks."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tasks, output = sys.argv[1:4]
    language_model: Any = HFLM(
        pretrained=model,
        dtype="float32",
        device="cpu",
        batch_size=sys.argv[4] if len(sys.argv) > 4 else 8,
        max_batch_size=int(sys.argv[5]) if len(sys.argv) > 5 else 64,
    )
    found = {}
    with open(tasks, encoding="utf-8") as file:
        described = json.load(file)
    for task in described:
        kind = {"choice": "loglikelihood", "text": "loglikelihood_rolling"}
        kind_ = kind.get(task["kind"], "generate_until")
        requests = []
        for at, prompt in enumerate(task["prompts"]):
            if task["kind"] == "choice":
                pairs = [(prompt, task["delimiter"] + choice) for choice in task["choices"][at]]
            elif task["kind"] == "text":
                pairs = [(prompt,)]
            else:
                options = {
                    "until": task["stop"],
                    "max_gen_toks": task["max_tokens"],
                    "do_sample": False,
                }
                pairs = [(prompt, options)]
            requests += [
                Instance(request_type=kind_, doc={}, arguments=pair, idx=index)
                for index, pair in enumerate(pairs)
            ]
        answers = getattr(language_model, kind_)(requests)
        found[task["name"]] = [each[0] if task["kind"] == "choice" else each for each in answers]
    with open(output, "w", encoding="utf-8") as file:
        json.dump(found, file, ensure_ascii=False)


if __name__ == "__main__":
    main()
