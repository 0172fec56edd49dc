"""The command `aift-ray VERB`."""

from __future__ import annotations

import difflib
import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

from aift_ray import (
    __version__,
    cache,
    completion,
    doctor,
    evaluate,
    export,
    merge,
    plan,
    quantize,
    serve,
    train,
    tune,
)
from aift_ray.utils.exit_status import guarded, leave
from aift_ray.utils.text_table import wrapped

VERBS = {
    "train": train.run,
    "tune": tune.run,
    "quantize": quantize.run,
    "serve": serve.run,
    "evaluate": evaluate.run,
    "export": export.run,
    "merge": merge.run,
    "plan": plan.run,
    "doctor": doctor.run,
    "cache": cache.run,
    "completion": completion.run,
}
USAGE = f"""usage: aift-ray VERB [flags]     (aift-ray VERB --help shows its flags)

  train       fine-tune a model on Ray Train workers
  tune        sweep over training runs on Ray Tune
  quantize    merge an adapter, quantize to 8 or 4 bits, measure the cost
  serve       answer over HTTP, as OpenAI's API does
  evaluate    score models and adapters on tasks, test their differences
  export      write a model as GGUF (llama.cpp, Ollama), or as one folder
  merge       make one model of several: linear, slerp, ties, dare, and more
  plan        what fits given GPUs, and how fast, by arithmetic
  doctor      look at this machine or cluster: what is wrong, and how to mend it
  cache       list and prune the token caches of earlier runs
  completion  print what makes bash, zsh or fish complete this command

aift-ray {__version__}"""


def main() -> None:
    """Run the verb that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    status = guarded(VERBS.get(name, _other), sys.argv[2:] if name in VERBS else [name])
    if name == "train":
        # what other verbs load may have processes of its own to end
        leave(status)
    sys.exit(status)


def _other(argv: Sequence[str]) -> int:
    (name,) = argv
    if name in ("-h", "--help", "--version"):
        print(f"aift-ray {__version__}" if name == "--version" else _usage(sys.stdout))
        return 0
    near = difflib.get_close_matches(name, VERBS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(f"error: there is no verb '{name}'{hint}\n\n{_usage(sys.stderr)}", file=sys.stderr)
    return 2


def _usage(stream: TextIO) -> str:
    """The verbs, at the width of a terminal."""
    width = shutil.get_terminal_size().columns if stream.isatty() else None
    # what a verb does stays in its column
    lines = [wrapped(line, width, 12 * line.startswith("  ")) or [""] for line in USAGE.split("\n")]
    return "\n".join(part for each in lines for part in each)


if __name__ == "__main__":
    main()
