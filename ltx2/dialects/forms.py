"""Forms with files in them, read with few parts and in clear words."""

from collections.abc import Collection
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ltx2.errors import InvalidRequest, StorageFull

FORM = "multipart/form-data"
MOST_FILES, MOST_FIELDS = 4, 50
"""Parts of one form. What is unknown is ignored, but not a hundred thousand of it."""


@dataclass(frozen=True)
class Sent:
    """A file of a form."""

    data: bytes
    filename: str | None


async def read_form(request: Request, known: Collection[str], file: str) -> tuple[dict[str, str], Sent]:
    """The known fields of a form, and its file.

    Args:
        request: with the form.
        known: fields; all others are ignored.
        file: the name of the one field that is a file. It must be there.

    Raises:
        InvalidRequest: it is no form, something comes twice, or the file is missing, empty, or no file.
        StorageFull: a large file found no room on the way.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise InvalidRequest(f"the body must be a form, sent as Content-Type: {FORM}")
    try:
        form = await request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS)
    except HTTPException as error:
        # the body limit speaks for itself
        if error.status_code != 400:
            raise
        raise InvalidRequest(f"the form could not be read: {error.detail}") from None
    except ClientDisconnect:
        raise InvalidRequest("the form ended in the middle") from None
    except ValueError:
        # the charset that a form claims may be none for texts
        raise InvalidRequest("the form could not be read") from None
    except OSError as error:
        raise StorageFull(f"there is no room for the form: {error.strerror}", hint="try again later") from None
    try:
        return await _read(form, known, file)
    finally:
        await form.close()


async def _read(form: FormData, known: Collection[str], file: str) -> tuple[dict[str, str], Sent]:
    texts: dict[str, str] = {}
    files: dict[str, UploadFile] = {}
    hint = f"send a file, as curl -F {file}=@path does"
    for name, value in form.multi_items():
        if name != file and name not in known:
            continue
        if name in texts or name in files:
            raise InvalidRequest("was sent more than once", field=name)
        if isinstance(value, UploadFile):
            files[name] = value
        else:
            texts[name] = value
    if file in texts:
        raise InvalidRequest("must be sent as a file", field=file, hint=hint)
    if file not in files:
        raise InvalidRequest("Field required", field=file, hint=hint)
    for name in files.keys() - {file}:
        raise InvalidRequest("must be sent as a text", field=name)
    sent = Sent(await files[file].read(), files[file].filename)
    if not sent.data:
        raise InvalidRequest("it is empty", field=file, hint=hint)
    return texts, sent
