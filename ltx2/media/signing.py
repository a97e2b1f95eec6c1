"""Signs finished files by C2PA, with the operator's key: whoever opens one can see what made it, and that nobody has
changed it since.

The official library does it, ``c2pa-python``. It is imported only where a key is configured.
"""

import io
import json
import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from ltx2 import __version__
from ltx2.errors import Internal, NotReady
from ltx2.formats import OutputFormat, media_type
from ltx2.media.partial import written_beside
from ltx2.settings import Settings

log = logging.getLogger(__name__)

GENERATED: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""Made by a model alone."""
COMPOSITE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""Made by a model, and of what somebody sent: parts of a video, or its sound."""
PROVENANCE_LABEL: Final = "ltx2.provenance"
"""Of the assertion that has our own facts."""
_TRIAL_TYPE: Final = "audio/wav"
_WITHOUT_TIME: Final = (
    "The clip is signed without a time: the timestamp server did not answer. The signature is good as long as its "
    "certificate is."
)


def load_signer(settings: Settings) -> "Signer | None":
    """What signs clips here; None where no key is configured.

    Raises:
        NotReady: the key, its certificate or the library cannot be used; the message says what is wrong.
    """
    certificate, key = settings.c2pa_certificate, settings.c2pa_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "LTX2_C2PA_CERTIFICATE" if certificate is None else "LTX2_C2PA_KEY"
        raise NotReady("clips are to be signed, and there is no " + missing, hint="set both, or none")
    signer = Signer(_read(certificate, "LTX2_C2PA_CERTIFICATE"), _read(key, "LTX2_C2PA_KEY"), settings)
    signer.check()
    return signer


def _read(path: Path, variable: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotReady(f"the file that {variable} names cannot be read: {error.strerror}") from None


class Signer:
    """Has the operator's key.

    Args:
        certificate: PEM of the certificate, and of those above it.
        key: PEM of its private key.
        settings: the algorithm, and who vouches for the time.

    Raises:
        NotReady: the library is not installed.
    """

    def __init__(self, certificate: bytes, key: bytes, settings: Settings) -> None:
        try:
            import c2pa
        except ImportError:
            raise NotReady(
                "clips are to be signed, and the library for that is not installed", hint="pip install c2pa-python"
            ) from None
        self._library = c2pa
        self._certificate, self._key = certificate, key
        self._algorithm = settings.c2pa_algorithm
        self._clock = settings.c2pa_timestamp_url
        # a GIF would get itself as a thumbnail
        self._context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
        self._types = frozenset(c2pa.Builder.get_supported_mime_types())

    def can_sign(self, output_format: OutputFormat) -> bool:
        """Whether C2PA has a place for a signature in files of this format."""
        return media_type(output_format) in self._types

    def check(self) -> None:
        """Sign something on trial.

        Raises:
            NotReady: the key does not fit, the certificate has expired, or is none that C2PA allows.
        """
        try:
            self._write(_silence(), io.BytesIO(), _TRIAL_TYPE, _manifest(GENERATED, "trial", None), clock=None)
        except self._library.C2paError as error:
            raise NotReady(
                f"clips cannot be signed: {_brief(error)}",
                hint="C2PA wants a certificate for documentSigning or emailProtection that is not self-signed, its "
                "key, and LTX2_C2PA_ALGORITHM as the key is",
            ) from None

    def sign(
        self,
        path: Path,
        output_format: OutputFormat,
        *,
        source_type: str,
        model: str,
        provenance: Mapping[str, Any] | None,
    ) -> tuple[str, ...]:
        """Sign a finished file: it is replaced by itself with a manifest in it.

        Args:
            path: of the file.
            output_format: one that can be signed.
            source_type: :data:`GENERATED` or :data:`COMPOSITE`.
            model: what made it.
            provenance: our own facts; None leaves them out.

        Returns:
            What the caller should know.

        Raises:
            StorageFull: there is no room for it.
            Internal: it could not be signed.
        """
        manifest, kind = _manifest(source_type, model, provenance), media_type(output_format)
        with written_beside(path) as signed, path.open("rb") as source, _Target(io.FileIO(signed, "x+")) as target:
            error = self._tried(source, target, kind, manifest, clock=self._clock)
            if error is None:
                return ()
            if self._clock is not None:
                log.warning("a clip was not signed with a time: %s", error)
                error = self._tried(source, target, kind, manifest, clock=None)
                if error is None:
                    return (_WITHOUT_TIME,)
            log.error("a clip could not be signed: %s", error)
            raise Internal(
                "the clip was made and could not be signed, so it is not given out",
                hint="the server's log says why; its operator can take the key out of its settings",
            )

    def _tried(
        self, source: BinaryIO, target: "_Target", kind: str, manifest: str, *, clock: str | None
    ) -> Exception | None:
        """What the library says against it; None when it is done."""
        source.seek(0)
        target.seek(0)
        target.truncate()
        try:
            self._write(source, target, kind, manifest, clock=clock)
        except self._library.C2paError as raised:
            target.check()
            error: Exception = raised
            return error
        return None

    def _write(
        self, source: BinaryIO, target: io.BytesIO | io.BufferedRandom, kind: str, manifest: str, *, clock: str | None
    ) -> None:
        info = self._library.C2paSignerInfo(
            self._algorithm.encode(), self._certificate, self._key, clock.encode() if clock else None
        )
        with self._library.Signer.from_info(info) as signer, self._library.Builder(manifest, self._context) as builder:
            builder.sign(signer, kind, source, target)


class _Target(io.BufferedRandom):
    """A file for the library, which takes every error of writing for one of its own: the first is kept."""

    _error: OSError | None = None

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._error = self._error or error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._error = self._error or error
            raise


def _manifest(source_type: str, model: str, provenance: Mapping[str, Any] | None) -> str:
    """What is claimed, as the library takes it."""
    agent = {"name": model}
    created = {"action": "c2pa.created", "digitalSourceType": source_type, "softwareAgent": agent}
    assertions: list[dict[str, Any]] = [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}]
    if provenance is not None:
        assertions.append({"label": PROVENANCE_LABEL, "data": dict(provenance)})
    generator = [{"name": "ltx2", "version": __version__}]
    return json.dumps({"claim_generator_info": generator, "assertions": assertions})


def _silence() -> io.BytesIO:
    """The shortest WAV."""
    form = struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", 2) + b"\0\0"
    return io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body)


def _brief(error: Exception) -> str:
    """What the library says, without the name of its own class."""
    kind, colon, said = str(error).partition(": ")
    return said if colon and kind.isalpha() else str(error)
