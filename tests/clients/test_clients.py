"""Clients of other projects, unchanged, against `aift-ray serve`: `make test-clients`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import environment
from tests.conftest import ROOT, SHIPPED
from tests.helpers.served import Served
from tests.ray_backend.test_serve_clients import SWITCH
from tests.serving.test_tools import TEMPLATE

pytestmark = [pytest.mark.clients, pytest.mark.ray]
HERE = Path(__file__).parent
PROGRAMS = sorted(path.stem.removesuffix("_client") for path in HERE.glob("*_client.*"))
MODEL = "工房/hina"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model whose template offers tools and thinks where it is asked to."""
    if not environment.ready():
        pytest.skip("there are no clients: make test-clients")
    folder = tmp_path_factory.mktemp("clients")
    shutil.copytree(SHIPPED, folder / "hina")
    (folder / "hina" / "chat_template.jinja").write_text(TEMPLATE + SWITCH, "utf-8")
    flags = ["--model", str(folder / "hina"), "--served-model-name", MODEL]
    made = Served(folder, *flags, patience_s=300)
    yield made
    made.stop()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_client_works_unchanged(served: Served, name: str, tmp_path: Path) -> None:
    program = next(HERE.glob(f"{name}_client.*"))
    given = [f"http://127.0.0.1:{served.port}", served.key, MODEL]
    if program.suffix == ".mjs":
        if not environment.node().exists():
            pytest.skip("there is no Node")
        command = ["node", str(program), *given, str(environment.node().resolve())]
    else:
        kind = "llama-index" if name == "llama_index" else ""
        command = [str(environment.python(kind)), "-m", f"tests.clients.{program.stem}", *given]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    # the clients themselves must not look for anything elsewhere
    for variable in ("HF_HUB_OFFLINE", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        variables.pop(variable, None)
    done = subprocess.run(
        command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_clients_that_are_promised_are_there() -> None:
    assert set(PROGRAMS) == {
        "openai", "anthropic", "langchain", "litellm", "llama_index", "hugging_face", "open_webui",
        "ai_sdk",
    }  # fmt: skip
