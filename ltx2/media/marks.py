"""What a clip is marked with: a comment that says how it was made, and a signature where there is a key."""

from collections.abc import Mapping
from pathlib import Path

from ltx2.imprint import hashed, imprinted, inputs_of
from ltx2.media.signing import COMPOSITE, GENERATED, Signer
from ltx2.media.tags import takes_comment
from ltx2.provenance import Provenance
from ltx2.request import GenerationRequest
from ltx2.settings import ClipMetadata


class Marks:
    """Those of one clip.

    Args:
        request: made explicit, see :func:`ltx2.imprint.settled`.
        media: what it names.
        made_by: what made it, on what; its inputs are filled in here.
        what: the operator lets be written.
        signer: of the operator.
    """

    def __init__(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        made_by: Provenance,
        what: ClipMetadata,
        signer: Signer | None,
    ) -> None:
        hashes = hashed(media)
        self.provenance = made_by.model_copy(update={"inputs": inputs_of(request, hashes)})
        self.comment = (
            imprinted(request, hashes, self.provenance, what) if takes_comment(request.output.format) else None
        )
        self.warnings: list[str] = []
        """What the caller should know of them, once the clip is there."""
        self._output_format = request.output.format
        self._source_type = COMPOSITE if _has_of_others(request) else GENERATED
        self._told = None if what == "none" else self.provenance.model_dump(exclude_none=True)
        self._signer = signer
        if signer is not None and not signer.can_sign(self._output_format):
            self.warnings.append(f"The clip is not signed: C2PA has no place for that in {self._output_format} files.")
            self._signer = None

    def finish(self, path: Path) -> None:
        """Sign the finished file, before it gets its name.

        Raises:
            StorageFull: there is no room for it.
            Internal: it could not be signed.
        """
        if self._signer is not None:
            self.warnings += self._signer.sign(
                path,
                self._output_format,
                source_type=self._source_type,
                model=self.provenance.model,
                provenance=self._told,
            )


def _has_of_others(request: GenerationRequest) -> bool:
    """Whether something in the clip is not the model's: it was in what the caller sent."""
    track = request.driving_audio
    is_theirs = track is not None and track.strength == 1 and request.wants_sound
    return request.video is not None or is_theirs
