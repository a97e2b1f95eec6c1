"""Where the clip of a job can be fetched, by whoever has the link. The route is the tasks dialect's."""

import re

from ltx2.errors import NotFound
from ltx2.studio.job import Job
from ltx2.studio.studio import Studio

_OUTPUT = re.compile(r"ltx2_(job_[0-9a-f]{32})\.[a-z0-9]{2,4}")


def output_name(job: Job) -> str:
    """What the clip of a job is called in links."""
    return f"ltx2_{job.id}.{job.request.output.format}"


def job_of_output(name: str) -> str:
    """The id of the job whose clip may be called so.

    Raises:
        NotFound: no clip is.
    """
    named = _OUTPUT.fullmatch(name)
    if not named:
        raise NotFound("there is no such clip")
    return named[1]


def output_url(job: Job, studio: Studio, base_url: str | None = None) -> str:
    """Where the clip of a job is. Where API keys are wanted, the link works without one for a while.

    Args:
        job: whose clip is asked for.
        studio: has the clip.
        base_url: of the request that is answered; that of the request that made the job when absent.
            ``LTX2_PUBLIC_URL`` wins over both.
    """
    name = output_name(job)
    token = f"?token={studio.keys.sign(name, job.order.owner)}" if studio.keys.wanted else ""
    return f"{_base(studio, base_url or job.order.base_url)}/outputs/{name}{token}"


def file_url(file_id: str, studio: Studio, base_url: str) -> str:
    """Where a file is, for callers with its owner's key. The route is the kiapi dialect's."""
    return f"{_base(studio, base_url)}/v1/files/{file_id}/download"


def _base(studio: Studio, base_url: str) -> str:
    base = (studio.settings.public_url or base_url).rstrip("/")
    # a socket's own address begins with ws
    return "http" + base.removeprefix("ws") if base.startswith("ws") else base
