"""Hold a model in fewer bits: `python -m aift_ray.quantize`, the same as `aift-ray quantize`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from aift_ray.utils.exit_status import guarded

if TYPE_CHECKING:
    from aift_ray.config import QuantizeConfig

DESCRIPTION = """Merge an adapter into a model, quantize it to 8 or 4 bits, and measure the effect.

The output folder can be loaded by from_pretrained; its quantization.json and plot show the memory
that is saved, and the loss in quality and speed. Flags win over --config files, files over
defaults. The shipped model is {model}."""
EPILOG = "exit status: 0 done; 1 failed; 2 the input is wrong; 130 stopped by Ctrl-C."


def run(argv: Sequence[str]) -> int:
    """Parse, quantize; the exit status."""
    from aift_ray.commandline import parse
    from aift_ray.config import SHIPPED_MODEL, QuantizeConfig

    _one_width(argv)
    description = DESCRIPTION.format(model=SHIPPED_MODEL)
    command = parse(argv, QuantizeConfig, "quantize", description, EPILOG, _check)
    import transformers

    # transformers warns of its own deprecated names
    warnings.simplefilter("ignore", FutureWarning)
    from aift_ray.quantization import quantize_run as quantization

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    quantization.run(command.config, command.dry_run)
    return 0


def _check(config: QuantizeConfig) -> None:
    from aift_ray.launch import early_checks
    from aift_ray.quantization import output_folder

    asked = config.output_dir
    occupied = output_folder.check(Path(asked).expanduser(), config.overwrite) if asked else []
    early_checks.check_quantization(config, occupied)


def _one_width(argv: Sequence[str]) -> None:
    """Refuse two numbers of bits, of which the last would win in silence."""
    from aift_ray.errors import ConfigError, Problem

    parts = [part for raw in argv for part in raw.split("=", 1)]
    given = dict.fromkeys(value for flag, value in pairwise(parts) if flag == "--bits")
    if len(given) > 1:
        what = f"both {' and '.join(given)} are given"
        raise ConfigError([Problem("bits", what, "run the command once for each")])


def main() -> None:
    """Entry point of `python -m aift_ray.quantize`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
