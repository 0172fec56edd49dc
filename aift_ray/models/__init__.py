"""From a name to a model: catalog, folders, tokenizers, adapters."""

from __future__ import annotations

import logging


def _can_be_acted_on(record: logging.LogRecord) -> bool:
    text = str(record.msg)
    cast, kernel = "MatMul8bitLt: inputs will be cast", "Failed to load CPU gemm_4bit_forward"
    return not text.startswith((cast, kernel))


# here and not in quantized.py: peft imports bitsandbytes, which speaks while it is imported
for _name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).addFilter(_can_be_acted_on)
