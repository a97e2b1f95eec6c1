from pathlib import Path

import pytest
from pydantic import ValidationError

from ltx2.errors import InvalidRequest
from ltx2.settings import Settings, load_settings


def test_every_setting_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTX2_MODEL", "tiny-dev")
    monkeypatch.setenv("LTX2_MAX_BODY_MB", "0.5")
    monkeypatch.setenv("LTX2_DATA_DIR", "/data")
    settings = load_settings()
    assert (settings.model, settings.max_body_bytes) == ("tiny-dev", 2**19)
    assert (settings.outputs_dir, settings.work_dir) == (Path("/data/outputs"), Path("/data/work"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LTX2_QUEUE_LIMIT", "0"),
        ("LTX2_PIECE_SECONDS", "1e308"),
        ("LTX2_DEVICE", "gpu"),
        ("LTX2_PRECISION", "fp64"),
        ("LTX2_VIDEO_CRF", "52"),
        ("LTX2_MAX_PIXELS", "many"),
        ("LTX2_MAX_BODY_MB", "inf"),
        ("LTX2_MAX_STEPS", "1001"),
        ("RUNPOD_LOG_LEVEL", "WARNING"),
    ],
)
def test_a_wrong_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest, match=name):
        load_settings()


def test_what_was_left_empty_in_a_form_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY", "LTX2_BUCKET_NAME")
    for name in names:
        monkeypatch.setenv(name, "")
    settings = load_settings()
    assert settings.bucket_endpoint_url is settings.bucket_secret_access_key is settings.bucket_name is None


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("tiny", "tiny"),
        ("ltx-2.3-distilled", "ltx-2.3-distilled"),
        ("Lightricks/LTX-2", "Lightricks/LTX-2"),
        ("/srv/models/secret-client/ltx-2-distilled", "ltx-2-distilled"),
        ("/srv/models/ltx-2-19b-distilled-fp8.safetensors", "ltx-2-19b-distilled-fp8.safetensors"),
        ("~/models/ltx-2/", "ltx-2"),
        ("../ltx-2", "ltx-2"),
    ],
)
def test_callers_are_told_the_model_without_its_folders(model: str, name: str) -> None:
    assert Settings(model=model).model_name == name


def test_what_makes_clips_is_told_no_secret() -> None:
    secrets = dict.fromkeys(("api_keys", "runpod_api_key", "bucket_secret_access_key", "webhook_secret"), "s")
    settings = Settings(model="tiny-dev", **secrets)  # type: ignore[arg-type]
    told = settings.without_secrets()
    assert {name for name in Settings.model_fields if getattr(told, name) != getattr(settings, name)} == set(secrets)
    assert {getattr(told, name) for name in secrets} == {None}
