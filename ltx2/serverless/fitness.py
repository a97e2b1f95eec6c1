"""What RunPod's client asks before a worker takes jobs. A worker that fails is ended, and RunPod starts another."""

import shutil
import tempfile
from collections.abc import Callable
from typing import Final

from ltx2.errors import LTX2Error
from ltx2.media.encoders import X264, works
from ltx2.settings import Settings

ROOM_BYTES: Final = 10**9
"""For the clips in hand."""
_LONGEST: Final = 160
"""Characters of somebody else's words. RunPod is told 256 of a reason."""

Check = Callable[[], None]


class Unfit(Exception):
    """This worker cannot do its work, and another may. The message says what to do."""


def checks(settings: Settings, failure: Exception | None, *, room: int = ROOM_BYTES) -> tuple[Check, ...]:
    """The checks of this worker, under the names that RunPod shows.

    Args:
        settings: where clips are written.
        failure: what loading the model has raised.
        room: bytes that have to be free where clips are written.
    """

    def clips_can_be_written() -> None:
        """Raises Unfit where the folder for clips takes no file, or has no room."""
        try:
            settings.work_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=settings.work_dir) as file:
                file.write(b"a few bytes")
            free = shutil.disk_usage(settings.work_dir).free
        except OSError as error:
            why = f"the folder for clips cannot be written: {error.strerror}"
            raise Unfit(f"{why}. Set LTX2_DATA_DIR to a folder that this user can write") from None
        if free < room:
            why = f"{free / 1e9:.1f} GB are free where clips are written, and {room / 1e9:.1f} GB are wanted"
            raise Unfit(f"{why}. Give the container a larger disk, or set LTX2_DATA_DIR to a larger one")

    def h264_can_be_encoded() -> None:
        """Raises Unfit where a few frames do not come back from H.264 as they were."""
        if not works(X264):
            why = "libx264 does not give back the pictures that it gets"
            raise Unfit(f"{why}. Build the image with the pinned version of av, for this kind of machine")

    def model_was_loaded() -> None:
        """Raises Unfit where loading the model failed, and may not on another machine."""
        # what we have words for is wrong everywhere: the worker lives, and tells it to each caller
        if failure is not None and not isinstance(failure, LTX2Error):
            first = (str(failure).splitlines() or [""])[0]
            raise Unfit(f"the model was not loaded: {type(failure).__name__}: {first[:_LONGEST]}. See the worker's log")

    return clips_can_be_written, h264_can_be_encoded, model_was_loaded
