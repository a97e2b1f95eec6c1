"""Pictures of what is in the files of videos, drawn one at a time."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from ltx2.media.stills import Still, draw_still
from ltx2.studio.files import Files


class Stills:
    """Belongs to the event loop.

    Args:
        files: where the videos are.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="still")

    async def draw(self, file_id: str, owner: str, kind: Still) -> bytes:
        """A picture of what is in a video.

        Raises:
            NotFound: there is no such file, or it is somebody else's.
            UnsupportedMedia: it has no pictures.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._draw, file_id, owner, kind)

    def close(self) -> None:
        """Wait for the one in hand."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _draw(self, file_id: str, owner: str, kind: Still) -> bytes:
        with self._files.local(file_id, owner) as (_, path):
            return draw_still(path, kind)
