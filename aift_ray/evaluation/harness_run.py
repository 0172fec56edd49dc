"""Rows of a task that lm-evaluation-harness runs, on a model that is loaded here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from aift_ray.errors import AiftError
from aift_ray.evaluation.evaluated_models import Opened
from aift_ray.tasks.harness_tasks import HarnessTask, score_name
from aift_ray.tasks.items import Item
from aift_ray.tasks.task import Task

_BATCH = 8


def run(
    opened: Opened, name: str, task: Task, items: Sequence[Item], harness: HarnessTask
) -> list[dict[str, Any]]:
    """The samples of all items of a task.

    Raises:
        AiftError: the harness failed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        model: Any = HFLM(
            pretrained=opened.model, tokenizer=opened.prompts.tokenizer, batch_size=_BATCH
        )
        found: Any = simple_evaluate(
            model=model,
            tasks=[harness.spec],
            num_fewshot=harness.num_few_shot,
            limit=harness.limit or None,
            apply_chat_template=harness.chat,
            bootstrap_iters=0,
            log_samples=True,
        )
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise AiftError(f"lm-evaluation-harness failed on {task.name}: {what}") from error
    logged = found["samples"][task.name]
    filters = list(dict.fromkeys(each["filter"] for each in logged))
    samples: dict[int, dict[str, Any]] = {}
    for each in logged:
        row = each["doc_id"]
        sample = samples.setdefault(row, _sample(name, task, items[row], each))
        for metric in each["metrics"]:
            score = score_name(metric, each["filter"], filters)
            if score in task.computed:
                sample["scores"][score] = [float(each[metric]), 1.0]
    return list(samples.values())


def _sample(name: str, task: Task, item: Item, logged: dict[str, Any]) -> dict[str, Any]:
    answer = logged["filtered_resps"][0] if logged["filtered_resps"] else ""
    return {
        "task": task.name,
        "model": name,
        "row": item.index,
        "place": item.place,
        "prompt": str(logged["arguments"][0][0]),
        "scores": {},
        "answers": [str(logged["target"])],
        "written": answer if isinstance(answer, str) else str(logged["filtered_resps"]),
    }
