"""Forms with files in them, read with few parts and in clear words."""

import re
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ltx2.errors import InvalidRequest, StorageFull

FORM = "multipart/form-data"
MOST_FILES, MOST_FIELDS = 4, 50
"""Parts of one form. What is unknown is ignored, but not a hundred thousand of it."""
MOST_NESTED = 200
"""The same where fields have fields: 32 keyframes have 96."""
LARGEST_TEXT = 2**20

_UTF_8 = re.compile(r'; *charset=(?:utf-?8|"utf-?8") *(?=;|$)', re.IGNORECASE)
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]{0,100}\]){1,3})")
_KEY = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"[0-9]{1,4}")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"-?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][-+]?[0-9]{1,3})?")
_BOOLEANS = {"true": True, "false": False}
_EACH = ""
"""The key between the brackets of ``name[]``: one more of a list."""


@dataclass(frozen=True)
class Sent:
    """A file of a form."""

    data: bytes
    filename: str | None


def is_form(request: Request) -> bool:
    """Whether the body says that it is a form with files."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


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
    async with _opened(request, MOST_FIELDS, LARGEST_TEXT) as form:
        return await _read(form, known, file)


async def read_nested_form(
    request: Request, files: Collection[str], largest: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """All fields of a form, and the bytes of its files.

    Fields may have fields and be lists: ``guidance[video_cfg]=3``, ``keyframes[0][frame]=8``, and as some clients
    write lists, ``keyframes[][frame]=8``. All values are texts; :func:`typed` makes more of them.

    Args:
        request: with the form.
        files: the names of the fields that may be files.
        largest: bytes of a text.

    Raises:
        InvalidRequest: it is no form, something comes twice or has no clear meaning, a file is empty or misplaced.
        StorageFull: a large file found no room on the way.
    """
    texts: list[tuple[str, str]] = []
    sent: dict[str, bytes] = {}
    async with _opened(request, MOST_NESTED, largest) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                texts.append((name, value))
            elif name not in files:
                raise InvalidRequest("must be sent as a text", field=name)
            elif name in sent:
                raise InvalidRequest("was sent more than once", field=name)
            else:
                sent[name] = (await _sent(value, name)).data
    fields = nested(texts)
    for name in sent.keys() & fields.keys():
        raise InvalidRequest("was sent more than once", field=name)
    return fields, sent


@asynccontextmanager
async def _opened(request: Request, most: int, largest: int) -> AsyncIterator[FormData]:
    if not is_form(request):
        raise InvalidRequest(f"the body must be a form, sent as Content-Type: {FORM}")
    # some of Python's charsets, such as punycode, take hours to read a megabyte
    if "charset" in _UTF_8.sub("", request.headers["content-type"]).lower():
        raise InvalidRequest("the form must be in UTF-8")
    try:
        form = await request.form(max_files=MOST_FILES, max_fields=most, max_part_size=largest)
    except HTTPException as error:
        # the body limit speaks for itself
        if error.status_code != 400:
            raise
        raise InvalidRequest(f"the form could not be read: {error.detail}") from None
    except ClientDisconnect:
        raise InvalidRequest("the form ended in the middle") from None
    except OSError as error:
        raise StorageFull(f"there is no room for the form: {error.strerror}", hint="try again later") from None
    try:
        yield form
    finally:
        await form.close()


async def _read(form: FormData, known: Collection[str], file: str) -> tuple[dict[str, str], Sent]:
    texts: dict[str, str] = {}
    files: dict[str, UploadFile] = {}
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
        raise InvalidRequest("must be sent as a file", field=file, hint=_hint(file))
    if file not in files:
        raise InvalidRequest("Field required", field=file, hint=_hint(file))
    for name in files.keys() - {file}:
        raise InvalidRequest("must be sent as a text", field=name)
    return texts, await _sent(files[file], file)


async def _sent(upload: UploadFile, name: str) -> Sent:
    sent = Sent(await upload.read(), upload.filename)
    if not sent.data:
        raise InvalidRequest("it is empty", field=name, hint=_hint(name))
    return sent


def _hint(file: str) -> str:
    return f"send a file, as curl -F {file}=@path does"


def nested(texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The fields of a form, those in brackets below the others.

    Raises:
        InvalidRequest: a field comes twice, or a list cannot be put together.
    """
    tree: dict[str, Any] = {}
    for name, text in texts:
        found = _NAME.fullmatch(name)
        *keys, last = [found[1], *_KEY.findall(found[2])] if found else [name]
        place: Any = tree
        for key in keys:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise InvalidRequest("was sent more than once", field=name)
        # below name[] everything is a list, of which this is the next
        if last == _EACH or _EACH in keys:
            values = place.setdefault(last, [])
            if not isinstance(values, list):
                raise InvalidRequest("was sent more than once", field=name)
            values.append(text)
        elif last in place:
            raise InvalidRequest("was sent more than once", field=name)
        else:
            place[last] = text
    return {name: _joined(value, name) for name, value in tree.items()}


def _joined(value: Any, name: str) -> Any:
    """A field with its lists put together."""
    if not isinstance(value, dict):
        return value
    if _EACH in value:
        if len(value) > 1:
            raise InvalidRequest("was sent both as a list and by keys", field=name)
        return _rows(value[_EACH], name)
    if all(_NUMBER.fullmatch(key) for key in value):
        indices = sorted(value, key=int)
        if [int(key) for key in indices] != [*range(len(indices))]:
            raise InvalidRequest("the items of a list are numbered from 0 on", field=name)
        return [_joined(value[key], f"{name}[{key}]") for key in indices]
    return {key: _joined(inner, f"{name}.{key}") for key, inner in value.items()}


def _rows(columns: Any, name: str) -> list[Any]:
    """A list of texts, or one of objects that came field by field."""
    if isinstance(columns, list):
        return columns
    if not all(key != _EACH and isinstance(column, list) for key, column in columns.items()):
        raise InvalidRequest("has too many brackets", field=name)
    if len({len(column) for column in columns.values()}) > 1:
        hint = f"number the items: {name}[0][{next(iter(columns))}]; or send JSON"
        raise InvalidRequest(
            "not all items have the same fields: nobody can tell which has which", field=name, hint=hint
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def typed(value: Any, wanted: Any) -> Any:
    """The texts of a form as the numbers and truth values that they are sent for, where they plainly are such.

    Everything else stays as it is, and is refused by who wanted a number. Python itself would read spaces,
    underscores and the digits of all scripts.

    Args:
        value: a text, or texts in objects and lists.
        wanted: the type it is for, such as a pydantic model.
    """
    kinds = list(_kinds(wanted))
    if isinstance(value, dict):
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        fields = model.model_fields if model else {}
        return {
            name: typed(inner, fields[name].annotation) if name in fields else inner for name, inner in value.items()
        }
    if isinstance(value, list):
        items = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is list), Any)
        return [typed(item, items) for item in value]
    if not isinstance(value, str) or str in kinds:
        return value
    if bool in kinds and value in _BOOLEANS:
        return _BOOLEANS[value]
    if int in kinds and _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if float in kinds and _DECIMAL.fullmatch(value) else value


def _kinds(wanted: Any) -> Iterator[Any]:
    """What a type may be, without its bounds."""
    origin = get_origin(wanted)
    if origin in (Union, UnionType):
        for one in get_args(wanted):
            yield from _kinds(one)
    elif origin is Annotated:
        yield from _kinds(get_args(wanted)[0])
    else:
        yield wanted
