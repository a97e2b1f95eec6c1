"""Files as answers: whole or by range, under a name a browser can keep."""

from collections.abc import Mapping
from contextlib import ExitStack

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from ltx2.studio.studio import Studio


async def file_answer(
    studio: Studio, file_id: str, owner: str, headers: Mapping[str, str] | None = None, name: str | None = None
) -> FileResponse:
    """The bytes of a file. ``Range`` and ``If-Range`` are honoured, a browser is told not to guess the type.

    Args:
        studio: has the file.
        file_id: of it.
        owner: whose it must be.
        headers: more of them.
        name: what a browser saves it as; otherwise the name of the file.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    held = ExitStack()
    # a remote store downloads the file first
    record, path = await studio.on_disk(held.enter_context, studio.files.local(file_id, owner))
    return FileResponse(
        path,
        headers={"X-Content-Type-Options": "nosniff", **(headers or {})},
        media_type=record.content_type,
        filename=name or record.filename,
        content_disposition_type="inline",
        background=BackgroundTask(studio.on_disk, held.close),
    )
