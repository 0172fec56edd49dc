"""Every setting of a server, declared once."""

from __future__ import annotations

import re
import unicodedata
from ipaddress import ip_network
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator

from aift_ray.config.section import (
    SHIPPED_MODEL,
    NotNegative,
    Positive,
    Section,
    Settings,
    memory_size,
    setting,
    workers_range,
)
from aift_ray.errors import Problem

LOOPBACK = ("127.0.0.1", "::1", "localhost")
Seconds = Annotated[float, Field(gt=0)]


class ServingConfig(Section):
    """Where the server listens, whom it lets in, how much it takes on."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: every network")
    port: int = setting(8000, "TCP port", ge=1, le=65535)
    api_key_file: str | None = setting(
        None, "file of API keys, one per line; default: a key is generated and printed once"
    )
    root_path: str = setting(
        "", "path prefix under which a proxy exposes the server, such as /llm; default: none"
    )
    forwarded_allow_ips: list[str] = setting(
        [],
        "addresses or networks (10.0.0.0/8) of proxies whose X-Forwarded headers are trusted; "
        "may be given again",
    )
    allowed_origins: list[str] = setting(
        [],
        "origins allowed by CORS, such as https://chat.example.com, or *; may be given again",
    )
    adapter_folder: str | None = setting(
        None, "folder whose subfolders can be loaded as adapters at run time, by name"
    )
    no_auth: bool = setting(False, "require no API key; only on the loopback address")
    num_replicas: int | str = setting(1, "number of replicas, or MIN:MAX for autoscaling")
    slots: Positive = setting(16, "maximum number of requests that a replica processes at once")
    max_queue: NotNegative = setting(
        64, "maximum number of waiting requests per replica; further ones get status 429"
    )
    request_timeout_s: Seconds = setting(600.0, "maximum duration of a request in seconds")
    idle_timeout_s: Seconds = setting(
        120.0, "maximum time without a new token in seconds, including time in the queue"
    )
    prefix_memory: str = setting(
        "512MiB",
        "memory of the prefix cache (keys and values of earlier requests); 0MiB: no prefix cache",
    )
    kv_cache_memory: str | None = setting(
        None,
        "memory of the KV cache of the transformers engine, such as 4GiB; default: the free "
        "memory of the GPU, or half of the free memory on a CPU",
    )
    drain_timeout_s: Seconds = setting(
        60.0, "seconds that a stopping replica has to finish its responses"
    )
    cpus_per_replica: Positive | None = setting(
        None, "CPUs and threads per replica; default: an equal share (1 with a GPU)"
    )

    @field_validator("root_path")
    @classmethod
    def _path(cls, value: str) -> str:
        path = value.rstrip("/")
        if path and not re.fullmatch(r"(/[\w~-][\w.~-]*)+", path, re.ASCII):
            raise ValueError("has to begin with / and to be a plain path, such as /llm")
        return path

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        for each in value:
            try:
                ip_network(each)
            except ValueError:
                what = f"{each} is no address and no network; all: 0.0.0.0/0"
                raise ValueError(what) from None
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for each in value:
            if each != "*" and not re.fullmatch(r"https?://[^/\s*]+", each):
                raise ValueError(f"{each} is no origin, such as https://chat.example.com")
        return value

    @field_validator("num_replicas")
    @classmethod
    def _replicas(cls, value: int | str) -> int | str:
        return workers_range(value)

    @field_validator("prefix_memory", "kv_cache_memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        return value if value is None else memory_size(value)


class VllmConfig(Section):
    """What only the engine vllm takes, by vLLM's own names."""

    max_model_len: Positive | None = setting(
        None,
        "maximum number of tokens of prompt and answer; default: the context of the model, or "
        "what fits in memory",
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = setting(
        0.9, "share of the GPU memory for weights and the KV cache"
    )
    kv_cache_memory: str | None = setting(
        None,
        "memory of the KV cache, such as 4GiB; default: what gpu_memory_utilization leaves; on "
        "a CPU what the slots need, at most 4GiB",
    )
    max_loras: Positive | None = setting(
        None,
        "maximum number of adapters in a batch; default: those given, plus 4 with an "
        "adapter_folder, at most 16",
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] | None = setting(
        None,
        "maximum rank of an adapter; default: that of the given adapters, 64 with an "
        "adapter_folder",
    )
    tensor_parallel_size: Positive = setting(1, "GPUs per replica, each with a shard of the model")
    enforce_eager: bool = setting(False, "do not compile: faster start, slower generation")

    @field_validator("kv_cache_memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        return value if value is None else memory_size(value)


class ServeConfig(Settings):
    """A whole server."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {
        "adapters": "adapter",
        "load_in": "load-in",
        "served_model_name": "served-model-name",
        "serving.host": "host",
        "serving.port": "port",
        "serving.root_path": "root-path",
        "serving.forwarded_allow_ips": "forwarded-allow-ips",
        "serving.allowed_origins": "allowed-origins",
        "serving.api_key_file": "api-key-file",
        "serving.no_auth": "no-auth",
        "serving.num_replicas": "num-replicas",
    }

    model: str = setting(SHIPPED_MODEL, "catalog name, Hub id or folder of the model to serve")
    adapters: list[str] = setting([], "adapters on the model, NAME=FOLDER; may be given again")
    load_in: Literal["4bit", "8bit"] | None = setting(
        None, "quantize the linear layers when loading"
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto", "dtype of the computation; auto: fp32 on a CPU, else bf16"
    )
    engine: Literal["auto", "transformers", "vllm"] = setting(
        "auto",
        "inference engine; auto: vllm if there are GPUs and vllm is installed, else transformers",
    )
    served_model_name: str | None = setting(
        None,
        "name of the base model for clients; default: its catalog or folder name",
        min_length=1,
    )
    serving: ServingConfig = setting(ServingConfig(), "address, API keys, limits")
    vllm: VllmConfig = setting(VllmConfig(), "settings of the vllm engine")

    _merged: str | None = PrivateAttr(default=None)

    @property
    def merged(self) -> str | None:
        """Folder of an adapter that becomes part of the model when it is loaded."""
        return self._merged

    def with_merged(self, base: str, adapter: str, name: str) -> ServeConfig:
        """The same with `adapter` made part of the model `base`, called `name`."""
        changes = {"model": base, "served_model_name": name, "engine": "transformers"}
        found = self.model_copy(update=changes)
        found._merged = adapter
        return found

    def contradictions(self) -> list[Problem]:
        """Conflicting settings."""
        found, serving = [], self.serving
        if serving.no_auth and serving.host not in LOOPBACK:
            what = f"contradicts host {serving.host}: anybody could use the model"
            found.append(Problem("no_auth", what, "listen on 127.0.0.1, or leave it out"))
        if serving.no_auth and serving.api_key_file:
            found.append(Problem("no_auth", "contradicts api_key_file", "give one of them"))
        if self.engine != "vllm":
            for name in _changed(self.vllm):
                what = f"applies to the vllm engine only, and the engine is {self.engine}"
                found.append(Problem(f"vllm.{name}", what, "add --engine vllm, or leave it out"))
        names = [_composed(each.partition("=")[0]) for each in self.adapters]
        for given, name in zip(self.adapters, names, strict=True):
            if not name or not given.partition("=")[2]:
                found.append(Problem(f"adapter {given}", "is not NAME=FOLDER"))
                continue
            remedy = "choose another NAME, or another --served-model-name"
            if "/" in name:
                what = f"its name {name} holds a '/'"
                found.append(Problem(f"adapter {given}", what, "choose another NAME"))
            elif name == self.name():
                what = f"the model is called {name}, too"
                found.append(Problem(f"adapter {given}", what, remedy))
            elif names.count(name) > 1:
                what = f"two adapters are called {name}"
                found.append(Problem(f"adapter {given}", what, remedy))
        return found

    def resolved(self, engine: Literal["transformers", "vllm"]) -> ServeConfig:
        """The same with an engine in place of `auto`."""
        return self.model_copy(update={"engine": engine})

    def name(self) -> str:
        """What clients call the base."""
        return _composed(self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1])

    def adapter_folders(self) -> dict[str, str]:
        """The folder of each adapter."""
        given = (each.partition("=") for each in self.adapters)
        return {_composed(name): folder for name, _, folder in given}

    def replicas(self) -> tuple[int, int]:
        """Least and most replicas."""
        least, _, most = str(self.serving.num_replicas).partition(":")
        return int(least), int(most or least)


def _composed(name: str) -> str:
    """In the form in which names are compared, whatever wrote it: macOS takes marks apart."""
    return unicodedata.normalize("NFC", name)


def _changed(section: Section) -> list[str]:
    """The settings of a section that are not at their defaults."""
    plain = type(section)()
    names = type(section).model_fields
    return [name for name in names if getattr(section, name) != getattr(plain, name)]
