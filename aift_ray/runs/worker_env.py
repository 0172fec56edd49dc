"""What of this process's environment, and of what suits GPUs, a worker gets."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from aift_ray.config import RunConfig
from aift_ray.utils.compilers import builds_launchers
from aift_ray.utils.drivers import may_see_gpus

# by name, or by the beginning of a name; never the whole of it
_NAMES = (
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_HUB_CACHE",
    "TRANSFORMERS_OFFLINE",
    "XDG_CACHE_HOME",
    "GLOO_SOCKET_IFNAME",
    "CUDA_DEVICE_ORDER",
    "PYTHONPATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)
_PREFIXES = ("NCCL_", "TORCH_", "PYTORCH_", "HF_HUB_", "WANDB_", "MLFLOW_", "TRACKIO_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_SECRETS = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    # an address may hold a password
    "MLFLOW_TRACKING_URI",
    *_PROXIES,
    *map(str.lower, _PROXIES),
)
# words in a name that speak of something to be kept
_KEPT = ("TOKEN", "SECRET", "PASSW", "CREDENTIAL", "KEY")
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True)
class Secrets:
    """Variables of the environment that are shown to nobody.

    They travel as an argument: a runtime environment is written to Ray's logs and shown on its
    dashboard, and so is what a dictionary of arguments holds.
    """

    values: dict[str, str] = field(repr=False)


def secrets() -> Secrets:
    """What a worker gets of this process's secrets."""
    return Secrets({name: os.environ[name] for name in _SECRETS if name in os.environ})


def environment() -> dict[str, str]:
    """What a worker gets of this process's environment, without its secrets."""
    passed = {name: value for name, value in os.environ.items() if _is_passed(name)}
    return passed | {"TOKENIZERS_PARALLELISM": "false"}


def _is_passed(name: str) -> bool:
    if name in _NAMES:
        return True
    if name in _SECRETS:
        return False
    return name.startswith(_PREFIXES) and not any(word in name.upper() for word in _KEPT)


def waiting() -> dict[str, str]:
    """How OpenMP's threads wait for each other, unless the user has chosen: without spinning.

    Threads that spin make a step take several times as long where another process has one of
    their CPUs.
    """
    return {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


def on_gpus(offload: bool) -> dict[str, str]:
    """What torch reads when it is imported by a worker on GPUs, where the user has set nothing.

    Args:
        offload: weights, gradients and moments lie in pinned host memory.
    """
    found = {}
    if not any(name in os.environ for name in _ALLOCATOR):
        # micro-batches are of all sizes: fixed segments would be left with holes
        settings = ["expandable_segments:True"]
        if offload:
            # else each pinned block takes the next power of two
            settings.append("pinned_max_round_threshold_mb:1")
        found["PYTORCH_ALLOC_CONF"] = ",".join(settings)
    # the machines of a cluster elsewhere may have no compiler: nothing is lost but some speed
    compiles = "RAY_ADDRESS" not in os.environ and builds_launchers()
    if "TORCH_DISABLE_NATIVE_JIT" not in os.environ and not compiles:
        # torch gives some products to Triton, which has no other way when it can't compile
        found["TORCH_DISABLE_NATIVE_JIT"] = "1"
    return found


def set_here(config: RunConfig) -> None:
    """Set what torch reads when it is imported, in a process that is going to train by itself."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(config.ray.cpus_per_worker or 1)))
    os.environ.update(waiting())
    if config.ray.use_gpu is not False and may_see_gpus():
        os.environ.update(on_gpus(config.parallel.offload))
