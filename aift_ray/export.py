"""Write a model for other programs: `python -m aift_ray.export`, the same as `aift-ray export`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aift_ray.utils.exit_status import guarded

if TYPE_CHECKING:
    from aift_ray.config import ExportConfig

DESCRIPTION = """Write a model for other programs, with an adapter merged where one is given.

gguf is a file for llama.cpp, Ollama and LM Studio; hf is a plain folder of transformers. What a
format can't hold is refused before anything is written. Flags win over --config files, files over
defaults. The shipped model is {model}."""
EPILOG = "exit status: 0 done; 1 failed; 2 the input is wrong; 130 stopped by Ctrl-C."


def run(argv: Sequence[str]) -> int:
    """Parse, export; the exit status."""
    from aift_ray.commandline import parse
    from aift_ray.config import SHIPPED_MODEL, ExportConfig

    description = DESCRIPTION.format(model=SHIPPED_MODEL)
    command = parse(argv, ExportConfig, "export", description, EPILOG, _check)
    import transformers

    # transformers warns of its own deprecated names
    warnings.simplefilter("ignore", FutureWarning)
    from aift_ray.conversion import export_run as conversion

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    conversion.run(command.config, command.dry_run)
    return 0


def _check(config: ExportConfig) -> None:
    from aift_ray.launch import early_checks

    early_checks.check_export(config)


def main() -> None:
    """Entry point of `python -m aift_ray.export`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
