"""The folder of the trained model: weights or adapter, tokenizer and card."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import torch

from aift_ray.engine.checkpoint import WEIGHTS
from aift_ray.engine.checkpoint.snapshot import whole_weights
from aift_ray.engine.checkpoint.tensor_files import GatheredTensors
from aift_ray.engine.checkpoint.writer import CheckpointWriter
from aift_ray.engine.model_card import FILE as CARD
from aift_ray.engine.model_writer import can_stream, named_weights, write_model, write_whole
from aift_ray.engine.worker_run import Run
from aift_ray.models.hub import load_config
from aift_ray.models.wrappers import is_wrapper
from aift_ray.parallel.dtensor_utils import is_shared_out


def write(run: Run, writing: CheckpointWriter, card: str) -> None:
    """Write the final model: tensor by tensor where it is shared out and can be.

    Args:
        card: its README.md.
    """
    folder, model = run.job.output / "model", run.module.model
    if can_stream(model):
        parts = GatheredTensors({WEIGHTS: named_weights(model)})
        writing.together(lambda: _write(run, folder, card, None, parts), parts)
        return
    spread = is_shared_out(run.module) or run.group.model_parallel_size > 1
    weights = whole_weights(run) if spread else None
    if run.group.is_main_process:
        _write(run, folder, card, weights)


def _write(
    run: Run,
    folder: Path,
    card: str,
    weights: dict[str, torch.Tensor] | None,
    parts: GatheredTensors | None = None,
) -> None:
    scratch = folder.with_name(".model.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    full, place = run.config.method == "full", run.job.location
    told = (str(scratch), run.written, run.job.tokenizer_files, run.job.stop_ids)
    if full and is_wrapper(load_config(place, scorer=True)):
        own = parts.whole(WEIGHTS) if parts else (weights or run.written.state_dict()).items()
        write_whole(*told, place, run.job.chat_template, own)
    else:
        dtype = run.precision.compute if full else None
        streamed = partial(parts.write, WEIGHTS, dtype=dtype) if parts else None
        write_model(*told, dtype, weights, streamed, final=True, base=place)
    (scratch / CARD).write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
