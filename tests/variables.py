"""The environment variables that are settings, those that others read, and the Dockerfile as its builder reads it."""

import pytest
from pydantic import AliasChoices

from ltx2.settings import Settings, load_settings
from processes import ROOT

OTHERS = {
    "HF_TOKEN": "huggingface_hub",
    "HF_TOKEN_PATH": "huggingface_hub",
    "HF_HOME": "huggingface_hub",
    "HF_HUB_OFFLINE": "huggingface_hub",
    "RUNPOD_INIT_TIMEOUT": "RunPod: how long a worker may take to be ready",
    "NVIDIA_DRIVER_CAPABILITIES": "NVIDIA's container toolkit",
    "PATH": "the shell",
    "PYTHONUNBUFFERED": "Python",
    "PYTHONDONTWRITEBYTECODE": "Python",
    "PIP_NO_CACHE_DIR": "pip",
    "PIP_DISABLE_PIP_VERSION_CHECK": "pip",
    "LTX2_BAKE": "the Dockerfile alone",
}
"""Variables that are not settings of this program, and who reads them."""


def settings_variables() -> set[str]:
    """The names of all environment variables that are settings."""
    names = set()
    for field, info in Settings.model_fields.items():
        alias = info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or f"LTX2_{field.upper()}"]
        names |= {str(choice) for choice in choices}
    return names


def set_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, object]) -> Settings:
    """The settings of a process that has these variables alone."""
    for name in settings_variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    return load_settings()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, as a builder reads them: comments gone, lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def all_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]
