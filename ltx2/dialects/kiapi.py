"""The kiapi dialect: every clip is a job, what goes in and comes out are files, callers wait or come back."""

import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from ltx2.dialects.base import STATUS, JsonRoute, error_headers, gone, json_response
from ltx2.dialects.callers import order_of, owner_of, result_for
from ltx2.dialects.declared import BINARY, PROMPT, RANGED, REMOVED, Responses, body, errors, file_answers, posted
from ltx2.dialects.forms import FORM, read_form
from ltx2.dialects.kiapi_bodies import (
    TYPE,
    AsyncJobResponse,
    CapabilityModelSpec,
    ErrorMessage,
    FileDeleteResponse,
    FileListResponse,
    FileRecord,
    GenerateRequest,
    JobDeleteResponse,
    JobListResponse,
    JobVideoResponse,
    UnknownModel,
    to_request,
)
from ltx2.dialects.kiapi_views import record, view
from ltx2.dialects.sending import file_answer
from ltx2.errors import InvalidRequest, LTX2Error, UnknownFile
from ltx2.settings import Settings
from ltx2.studio.studio import Studio

NAME = "kiapi"
MODEL = "distilled"
"""What a server's one model is called here, whatever it is."""
LONGEST_LIST = 1000
_BELOW = ("/v1/video/ltx2/", "/v1/jobs/", "/v1/files/")
_HEADERS = ("Idempotency-Key", "X-Priority")
_PART = re.compile(r"[^.\[\]]+")
_QUALITY = re.compile(r";\s*q=([01](?:\.\d{0,3})?)\s*(?:;|$)")


def _id(kind: str) -> AfterValidator:
    def check(value: str) -> str:
        if re.fullmatch(kind + "_[0-9a-f]+", value):
            return value
        raise PydanticCustomError("id", "must be {kind}_ and hexadecimal digits", {"kind": kind})

    return AfterValidator(check)


def _pattern(kind: str) -> dict[str, Any]:
    return {"pattern": f"^{kind}_[0-9a-f]+$", "examples": [f"{kind}_0123456789abcdef0123456789abcdef"]}


_AFTER = Query(description="ours: the id of the last one of a list, to go on from there")
JobId = Annotated[str, Path(json_schema_extra=_pattern("job")), _id("job")]
FileId = Annotated[str, Path(json_schema_extra=_pattern("file")), _id("file")]
AfterJob = Annotated[Annotated[str, Field(json_schema_extra=_pattern("job")), _id("job")] | None, _AFTER]
AfterFile = Annotated[Annotated[str, Field(json_schema_extra=_pattern("file")), _id("file")] | None, _AFTER]
Limit = Annotated[int, Query(ge=1, le=LONGEST_LIST, description="ours: how many at most")]
Accept = Annotated[str | None, Header(alias="Accept", description="application/json asks for the job, not the MP4")]
_UPLOAD = {
    "title": "Body_upload_v1_files_post",
    "type": "object",
    "properties": {
        "file": {
            "type": "string",
            "contentMediaType": "application/octet-stream",
            "title": "File",
            "description": "its bytes",
        }
    },
    "required": ["file"],
}


def owns(path: str) -> bool:
    """Whether errors at this path are told in this dialect."""
    return f"{path}/".startswith(_BELOW)


def checks_keys(_path: str) -> bool:
    """Nowhere."""
    return False


def router(studio: Studio) -> APIRouter:
    """The routes of this dialect."""
    routes = APIRouter(tags=[NAME], route_class=JsonRoute)
    _generating(routes, studio)
    _jobs(routes, studio)
    _files(routes, studio)
    return routes


def _errors(*statuses: int) -> Responses:
    # 422 has a shape of its own, which the framework declares
    return errors(ErrorMessage, 401, *statuses, 500)


def _generating(routes: APIRouter, studio: Studio) -> None:
    clip: dict[str, Any] = {
        "description": "The MP4; the job where Accept asks for application/json",
        "content": {"video/mp4": BINARY},
        "headers": {
            "X-Kiapi-File-Id": {"description": "of the MP4", "schema": {"type": "string"}},
            "X-Kiapi-Job-Id": {"description": "of the job", "schema": {"type": "string"}},
        },
    }
    accepted: dict[str, Any] = {"description": "The job that was made, for async", "model": AsyncJobResponse}
    others: Responses = {200: clip, 202: accepted, **_errors(400, 404, 409, 413, 429, 503, 504, 507)}
    others[404] |= REMOVED

    examples = posted(
        waves={"prompt": PROMPT, "width": 768, "height": 512, "num_frames": 49, "fps": 24, "seed": 7},
        with_sound_and_as_a_job={"prompt": PROMPT, "num_frames": 49, "generate_audio": True, "mode": "async"},
    )

    @routes.post("/v1/video/ltx2/generate", response_model=JobVideoResponse, responses=others, openapi_extra=examples)
    async def generate(body: GenerateRequest, request: Request, accept: Accept = None) -> Response | JobVideoResponse:
        """Make a clip from text, images and sound. After 504 the job runs on, and can be asked for."""
        check(body, studio.settings)
        order = order_of(request, NAME, webhook_url=body.webhook_url, upload_url=body.upload_url)
        making = studio.submit(*to_request(body), order)
        if body.mode == "async":
            job = await making
            return json_response(AsyncJobResponse(job_id=job.id, type=TYPE, status=job.state).model_dump(), 202)
        done = await result_for(request, studio, making)
        if done is None:
            return gone()
        if prefers_json(accept or ""):
            return view(done)
        file_id = str(done.file_id)  # who succeeded has one
        headers = {"X-Kiapi-File-Id": file_id, "X-Kiapi-Job-Id": done.id}
        return await file_answer(studio, file_id, order.owner, request, render_error, headers=headers)

    @routes.get("/v1/video/ltx2/models", responses=_errors())
    async def list_models() -> list[CapabilityModelSpec]:
        """The one model of this server."""
        return [
            CapabilityModelSpec(
                name=MODEL,
                family=TYPE,
                domain="video",
                aliases=[studio.settings.model_name],
                default=True,
                features=["text", "image", "audio", "video"],
            )
        ]


def _jobs(routes: APIRouter, studio: Studio) -> None:
    @routes.get("/v1/jobs", response_model=JobListResponse, responses=_errors(404))
    async def list_jobs(request: Request, limit: Limit = 100, after: AfterJob = None) -> Response:
        """The jobs of this caller, those of the other dialects too."""
        jobs = await studio.jobs(owner_of(request), limit, after)
        # a thousand of them would keep everybody else waiting
        return await studio.on_disk(lambda: _listed(JobListResponse(data=[view(job) for job in jobs])))

    @routes.get("/v1/jobs/{job_id}", responses=_errors(404))
    async def get_job(job_id: JobId, request: Request) -> JobVideoResponse:
        """How far a job is, and what became of it."""
        return view(await studio.job(job_id, owner_of(request)))

    @routes.delete("/v1/jobs/{job_id}", responses=_errors(404))
    async def delete_job(job_id: JobId, request: Request) -> JobDeleteResponse:
        """Cancel a job and forget it. Its files stay."""
        owner = owner_of(request)
        job = await studio.cancel(job_id, owner)
        await studio.forget(job_id, owner)
        return JobDeleteResponse(deleted=True, job_id=job_id, was_running=job.state == "running")


def _files(routes: APIRouter, studio: Studio) -> None:
    store = (503, 507)  # it does not answer, it is full
    wrong: Responses = {
        422: {
            "description": "Validation Error",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/HTTPValidationError"}}},
        }
    }
    form = body(media_type=FORM, schema=_UPLOAD, photo={"file": "the bytes of a photo.jpg"})

    @routes.post("/v1/files", responses={**wrong, **_errors(413, *store)}, openapi_extra=form)
    async def upload(request: Request) -> FileRecord:
        """Keep a file, to be named in requests."""
        owner = owner_of(request)
        _, file = await read_form(request, (), "file")
        await studio.on_disk(studio.files.check_room)
        add = partial(studio.files.add, file.data, owner=owner, filename=file.filename)
        return record(await studio.on_disk(add))

    @routes.get("/v1/files", response_model=FileListResponse, responses=_errors(404, *store))
    async def list_files(request: Request, limit: Limit = 100, after: AfterFile = None) -> Response:
        """The files of this caller: what was sent, and what was made."""
        files = await studio.on_disk(partial(studio.files.list, owner_of(request), limit=limit, after=after))
        return await studio.on_disk(lambda: _listed(FileListResponse(data=[record(file) for file in files])))

    @routes.get("/v1/files/{file_id}", responses=_errors(404, *store))
    async def get_file(file_id: FileId, request: Request) -> FileRecord:
        """A file without its bytes."""
        return record(await studio.on_disk(studio.files.get, file_id, owner_of(request)))

    @routes.delete("/v1/files/{file_id}", responses=_errors(404, *store))
    async def delete_file(file_id: FileId, request: Request) -> FileDeleteResponse:
        """Remove a file. Jobs that made or used it still name it."""
        await studio.on_disk(studio.files.delete, file_id, owner_of(request))
        return FileDeleteResponse(deleted=True, file_id=file_id)

    binary = {**file_answers("*/*", "The bytes", ErrorMessage), **_errors(404, *store)}

    @routes.head("/v1/files/{file_id}/download", include_in_schema=False)
    @routes.get("/v1/files/{file_id}/download", response_class=Response, responses=binary, openapi_extra=RANGED)
    async def download_file(file_id: FileId, request: Request) -> Response:
        """The bytes of a file, all or a range."""
        return await file_answer(studio, file_id, owner_of(request), request, render_error)


def _listed(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def check(body: GenerateRequest, settings: Settings) -> None:
    """Check what depends on this server.

    Raises:
        InvalidRequest: naming the field.
    """
    if body.model not in (None, MODEL, settings.model_name):
        raise UnknownModel("there is no such model here", field="model", hint="GET /v1/video/ltx2/models lists them")
    for field, value, most in (
        ("width", body.width, settings.kiapi_max_side),
        ("height", body.height, settings.kiapi_max_side),
        ("num_frames", body.num_frames, settings.kiapi_max_frames),
    ):
        if value is not None and value > most:
            raise InvalidRequest(f"{value} is more than the {most} allowed here", field=field)


def prefers_json(accept: str) -> bool:
    """Whether an ``Accept`` header asks for the job: JSON must be named, and not after or below a video."""
    best, is_json = 0.0, False
    for item in accept.lower().split(","):
        name = item.partition(";")[0].strip()
        named = _QUALITY.search(item)
        quality = float(named[1]) if named else 1.0
        if quality > best and (name == "application/json" or name.startswith("video/")):
            best, is_json = quality, name == "application/json"
    return is_json


def render_error(error: LTX2Error, request: Request, status: int | None = None) -> Response:
    """An error in this dialect's shape: 422 names the field apart, all else is one text."""
    status = status or (400 if isinstance(error, (UnknownModel, UnknownFile)) else STATUS[error.code])
    detail: str | list[dict[str, Any]] = str(error)
    if status == 422:
        text = f"{error.message} ({error.hint})" if error.hint else error.message
        detail = [{"loc": _place(error.field, request), "msg": text, "type": error.code}]
    return json_response({"detail": detail}, status, error_headers(error))


def _place(field: str | None, request: Request) -> list[str | int]:
    """Where in a request a field is, in parts as the framework says it."""
    name = field or ""
    if name in request.path_params:
        return ["path", name]
    if name in _HEADERS:
        return ["header", name]
    # between an image and its url the framework names the kind of reference: url again
    parts = dict.fromkeys(_PART.findall(name))
    places = [int(part) if part.isdecimal() else part for part in parts]
    return ["query" if request.method == "GET" else "body", *places]
