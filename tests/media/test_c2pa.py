"""Signed clips, read back by the official library; and keys that cannot be used."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
import httpx
import numpy as np
import pytest
import soundfile
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ltx2.engine import CancelFlag, Clip
from ltx2.errors import Internal, NotReady
from ltx2.fake import FakeEngine
from ltx2.formats import OutputFormat, media_type
from ltx2.media.probe import probe_video
from ltx2.media.signing import COMPOSITE, GENERATED, PROVENANCE_LABEL, load_signer
from ltx2.media.tags import read_comment
from ltx2.provenance import digest
from ltx2.request import AudioTrack, GenerationRequest, Output
from ltx2.settings import Settings
from processes import ROOT, free_port, running_server

NOW = datetime.now(UTC)


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


ABOVE, OURS, OTHER = key(), key(), key()


def certificate(of: ec.EllipticCurvePrivateKey, *, is_authority: bool = False, days: int = 30) -> bytes:
    """As C2PA wants them: of an authority of our own, and below it one for signing mail and documents."""
    names = [
        x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(NameOID.COMMON_NAME, each)]
        )
        for each in ("Authority" if is_authority else "Signer", "Authority")
    ]
    usage = x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder(names[1], names[0], of.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=60))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(of.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ABOVE.public_key()), critical=False)
    )
    if not is_authority:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(ABOVE, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem(of: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return of.private_bytes(encoding, form, serialization.NoEncryption())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates and keys, good and bad."""
    folder = tmp_path_factory.mktemp("keys")
    authority = certificate(ABOVE, is_authority=True)
    for name, content in {
        "chain": certificate(OURS) + authority,
        "expired": certificate(OURS, days=-1) + authority,
        "authority": authority,
        "garbage": b"nothing",
        "key": pem(OURS),
        "other": pem(OTHER),
        "above": pem(ABOVE),
    }.items():
        (folder / name).write_bytes(content)
    return folder


def engine(tmp_path: Path, files: Path, **settings: Any) -> FakeEngine:
    given = {"c2pa_certificate": files / "chain", "c2pa_key": files / "key"} | settings
    return FakeEngine(Settings(data_dir=tmp_path / "data", **given))


def make(engine: FakeEngine, media: Mapping[str, bytes] | None = None, **fields: Any) -> Clip:
    small = {"prompt": "a secret", "width": 64, "height": 64, "num_frames": 9, "seed": 7, "num_inference_steps": 1}
    request = GenerationRequest(**small | fields)
    return engine.generate(request, media or {}, lambda _progress: None, CancelFlag())


@dataclass(frozen=True)
class Seen:
    """What the official library reads in a file."""

    state: str | None
    faults: set[str]
    manifest: dict[str, Any]

    @property
    def action(self) -> dict[str, Any]:
        (action,) = self.assertions["c2pa.actions.v2"]["actions"]
        return dict(action)

    @property
    def assertions(self) -> dict[str, Any]:
        return {each["label"]: each["data"] for each in self.manifest["assertions"]}


def read(data: bytes, output_format: OutputFormat = "mp4") -> Seen:
    with c2pa.Reader(media_type(output_format), io.BytesIO(data)) as reader:
        told = json.loads(reader.json())
    results = told["validation_results"]["activeManifest"]["failure"]
    return Seen(
        told["validation_state"], {each["code"] for each in results}, told["manifests"][told["active_manifest"]]
    )


UNKNOWN_AUTHORITY = {"signingCredential.untrusted"}
"""All that is to be said against a clip of ours: nobody knows the test's authority."""


@pytest.mark.parametrize("output_format", ["mp4", "mov", "gif", "wav", "flac", "mp3"])
def test_a_clip_says_what_made_it_and_keeps_its_comment(
    tmp_path: Path, files: Path, output_format: OutputFormat
) -> None:
    clip = make(engine(tmp_path, files), output=Output(format=output_format))
    data = clip.path.read_bytes()
    seen = read(data, output_format)
    assert (seen.state, seen.faults) == ("Valid", UNKNOWN_AUTHORITY)
    assert seen.manifest["claim_generator_info"][0]["name"] == "ltx2"
    assert seen.manifest["signature_info"]["common_name"] == "Signer"
    assert seen.action == {
        "action": "c2pa.created",
        "digitalSourceType": GENERATED,
        "softwareAgent": {"name": "fake"},
    }
    assert clip.provenance is not None
    assert seen.assertions[PROVENANCE_LABEL] == clip.provenance.model_dump(exclude_none=True)
    assert "secret" not in json.dumps(seen.manifest)
    if output_format != "gif":
        assert json.loads(read_comment(clip.path) or "")["request"]["prompt"] == "a secret"
    if output_format == "mp4":
        facts = probe_video(clip.path)
        assert (facts.num_frames, facts.faststart) == (9, True)
        for place in (data.index(b"mdat") + 100, len(data) - 1):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            tampered = read(changed)
            assert tampered.state == "Invalid"
            assert any(code.endswith("Hash.mismatch") for code in tampered.faults)


def test_what_has_somebody_elses_sound_is_called_composite(tmp_path: Path, files: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((8000, 1)), 8000, format="WAV")
    media = {"audio": file.getvalue()}
    making = engine(tmp_path, files)
    strict = make(making, media, audio=AudioTrack(source="audio"))
    assert read(strict.path.read_bytes()).action["digitalSourceType"] == COMPOSITE
    inputs = read(strict.path.read_bytes()).assertions[PROVENANCE_LABEL]["inputs"]
    assert inputs == {"audio": digest(media["audio"])}
    loose = make(making, media, audio=AudioTrack(source="audio", strength=0.5))
    assert read(loose.path.read_bytes()).action["digitalSourceType"] == GENERATED


def test_who_wants_no_metadata_gets_a_signature_alone(tmp_path: Path, files: Path) -> None:
    clip = make(engine(tmp_path, files, clip_metadata="none"))
    assert PROVENANCE_LABEL not in read(clip.path.read_bytes()).assertions
    assert read_comment(clip.path) is None


def test_a_webm_cannot_be_signed_and_says_so(tmp_path: Path, files: Path) -> None:
    clip = make(engine(tmp_path, files), output=Output(format="webm"))
    assert "The clip is not signed: C2PA has no place for that in webm files." in clip.warnings


def test_without_a_timestamp_server_a_clip_is_signed_all_the_same(tmp_path: Path, files: Path) -> None:
    making = engine(tmp_path, files, c2pa_timestamp_url=f"http://127.0.0.1:{free_port()}/time")
    making.load()
    clip = make(making)
    assert read(clip.path.read_bytes()).state == "Valid"
    assert any("without a time" in warning for warning in clip.warnings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"c2pa_key": "other"}, "does not match"),
        ({"c2pa_certificate": "expired"}, "not valid at time of signing"),
        ({"c2pa_certificate": "authority", "c2pa_key": "above"}, "self-signed"),
        ({"c2pa_certificate": "garbage"}, "does not contain signing certificate"),
        ({"c2pa_key": "garbage"}, "invalid ES256 private key"),
        ({"c2pa_algorithm": "ps256"}, "unsupported private key algorithm"),
        ({"c2pa_certificate": None}, "there is no LTX2_C2PA_CERTIFICATE"),
        ({"c2pa_key": None}, "there is no LTX2_C2PA_KEY"),
        ({"c2pa_key": "nowhere"}, "LTX2_C2PA_KEY names cannot be read"),
    ],
)
def test_a_key_that_cannot_be_used_is_found_when_the_model_is_loaded(
    tmp_path: Path, files: Path, settings: dict[str, str | None], reason: str
) -> None:
    paths = {
        name: value if value is None or name == "c2pa_algorithm" else files / value for name, value in settings.items()
    }
    with pytest.raises(NotReady, match=reason):
        engine(tmp_path, files, **paths).load()


_PROGRAM = """
import resource, sys
from pathlib import Path
from ltx2.errors import LTX2Error
from ltx2.media.signing import GENERATED, load_signer
from ltx2.settings import load_settings

folder = Path(sys.argv[1])
if sys.argv[2] == "missing":
    sys.modules["c2pa"] = None
try:
    signer = load_signer(load_settings())
    clip = folder / "clip.wav"
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    signer.sign(clip, "wav", source_type=GENERATED, model="m", provenance=None)
except LTX2Error as error:
    print(error.code, error.hint)
"""


@pytest.mark.parametrize(
    ("what", "said"), [("missing", "not_ready pip install c2pa-python"), ("full", "storage_full None")]
)
def test_without_the_library_and_on_a_full_disk(tmp_path: Path, files: Path, what: str, said: str) -> None:
    soundfile.write(tmp_path / "clip.wav", np.zeros((2800, 1)), 8000)
    before = (tmp_path / "clip.wav").read_bytes()
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROGRAM, str(tmp_path), what],
        cwd=ROOT,
        env={"LTX2_C2PA_CERTIFICATE": str(files / "chain"), "LTX2_C2PA_KEY": str(files / "key")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == said
    assert [path.name for path in tmp_path.iterdir()] == ["clip.wav"]
    assert (tmp_path / "clip.wav").read_bytes() == before


def test_what_cannot_be_signed_is_not_given_out(tmp_path: Path, files: Path) -> None:
    signer = load_signer(Settings(c2pa_certificate=files / "chain", c2pa_key=files / "key"))
    assert signer is not None
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"no video")
    with pytest.raises(Internal, match="could not be signed, so it is not given out"):
        signer.sign(clip, "mp4", source_type=GENERATED, model="m", provenance=None)
    assert list(tmp_path.iterdir()) == [clip]
    assert clip.read_bytes() == b"no video"


def test_a_server_gives_out_what_was_signed(tmp_path: Path, files: Path) -> None:
    settings = {"LTX2_C2PA_CERTIFICATE": str(files / "chain"), "LTX2_C2PA_KEY": str(files / "key")}
    with running_server(tmp_path, settings, engine="fake") as server:
        body = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9}
        answer = httpx.post(f"{server.url}/generate", json=body, timeout=60).raise_for_status().json()
    seen = read(base64.b64decode(answer["video"].partition(",")[2]))
    assert (seen.state, seen.faults) == ("Valid", UNKNOWN_AUTHORITY)
    assert seen.assertions[PROVENANCE_LABEL]["seed"] == answer["seed"] == answer["provenance"]["seed"]
