"""How well a clip came out, in a few figures, and what of it a user would want to know.

The figures are measured while the file is written, see :mod:`ltx2.media.quality`. Here is what they mean: from where on
a clip has a flaw, and what is said of it.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from ltx2.request import Flaw

FROZEN: Final = 0.95
"""Share of still frames from which on a picture does not move. Not all of them: a clip that begins with an image often
jumps once, from the image to what the model makes of it."""
SILENT: Final = 0.95
"""Share of silence from which on there is no sound, unless it is heard. Not all: a vocoder may click as it begins."""
UNHEARD_LUFS: Final = -40.0
"""A sound louder than this is heard, however short it is: broadcasts have -23, a click of one sample -43 at most."""
BLACK: Final = 0.5
"""Share of black frames from which on a user is told. A fade from black and back takes less."""
CLIPPED: Final = 0.5
"""Share of pixels without detail from which on a user is told. A white or a black background may take much of a
picture that is as it should be."""
OVER_DBFS: Final = 1.0
"""Peak from which on a user is told that the sound was cut off at full scale, 0 dBFS. Loud music is often a little over
it when it comes out of MP3 or AAC, and sounds none the worse."""

Share = Annotated[float, Field(ge=0, le=1)]


class QualityReport(BaseModel):
    """What was measured of a clip. None: there was nothing to measure."""

    # other versions may measure more
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    frozen_frames: Share | None = Field(
        None, description="share of the frames after the first that show no other picture; null with fewer than two"
    )
    black_frames: Share | None = Field(None, description="share of the frames that are black")
    clipped_pixels: Share | None = Field(None, description="share of the pixels that are burnt out or crushed")
    loudness_lufs: float | None = Field(
        None, description="of the whole sound, by EBU R128; null below 0.4 seconds or where all is too quiet to count"
    )
    peak_dbfs: float | None = Field(None, description="loudest sample, before it was limited to 0; null if all are 0")
    silence: Share | None = Field(None, description="share of the time that is silent")
    audio_video_seconds: float | None = Field(
        None, description="how much longer the pictures are than the sound was, before that was cut or filled to fit"
    )

    @property
    def flaws(self) -> tuple[Flaw, ...]:
        """What another seed may not have."""
        found: list[Flaw] = []
        is_heard = self.loudness_lufs is not None and self.loudness_lufs > UNHEARD_LUFS
        if self.silence is not None and self.silence >= SILENT and not is_heard:
            found.append("silent")
        if self.frozen_frames is not None and self.frozen_frames >= FROZEN:
            found.append("frozen")
        return tuple(found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user would want to know, as sentences."""
        found = []
        if "silent" in self.flaws:
            found.append("The sound is silent.")
        if "frozen" in self.flaws:
            found.append("The picture does not move.")
        if self.black_frames is not None and self.black_frames >= BLACK:
            found.append(f"{self.black_frames:.0%} of the frames are black.")
        elif self.clipped_pixels is not None and self.clipped_pixels >= CLIPPED:
            found.append(f"{self.clipped_pixels:.0%} of the picture is burnt out or crushed to black.")
        if self.peak_dbfs is not None and self.peak_dbfs >= OVER_DBFS:
            found.append(f"The sound was {self.peak_dbfs:.1f} dB over full scale, and is distorted where it was.")
        return tuple(found)
