"""How the kiapi dialect shows jobs and files."""

from typing import Any

from ltx2.dialects.creative import said
from ltx2.dialects.kiapi_bodies import AUTO, TYPE, FileRecord, JobVideoResponse, Timings, VideoResponse
from ltx2.request import MOST_FRAMES
from ltx2.studio import files
from ltx2.studio.job import Job


def view(job: Job) -> JobVideoResponse:
    """A job in this dialect, whichever it came in by."""
    waits = job.state == "queued" or job.started_at is None
    phase = job.progress.phase
    labels = {"succeeded": "done", "running": "running" if phase == "queued" else phase}
    return JobVideoResponse(
        id=job.id,
        type=TYPE,
        status=job.state,
        params=_params(job),
        result=_result(job),
        artifacts=[job.file_id] if job.file_id else [],
        error=str(job.failure.error) if job.failure else None,
        created_at=job.created_at,
        started_at=None if waits else job.started_at,
        finished_at=job.finished_at,
        progress=None if waits else job.fraction,
        progress_label=labels.get(job.state, job.state),
    )


def _params(job: Job) -> dict[str, Any]:
    """A body that asks for the same again, as far as this dialect can: guidance and the like have no field here."""
    request = job.request

    def ref(name: str) -> dict[str, str]:
        return {"type": "file_id", "file_id": job.inputs[name]}

    sound = request.driving_audio
    params: dict[str, Any] = {
        "prompt": request.prompt,
        **({} if request.video else _measures(job)),
        "seed": request.seed,
        "generate_audio": request.include_audio and sound is None,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "audio": ref(sound.source) if sound else None,
        "audio_dither_db": sound.dither_db if sound else None,
        "video": ref(request.video) if request.video else None,
        **said(request),
    }
    length = job.num_frames or MOST_FRAMES
    others = []
    for keyframe in request.keyframes:
        index, strength = keyframe.index(length), keyframe.strength
        if keyframe.frame == "last" or index == length - 1 > 0:
            params |= {"end_image": ref(keyframe.image), "end_image_strength": strength}
        elif index == 0:
            params |= {"image": ref(keyframe.image), "image_strength": strength}
        else:
            others.append({"image": ref(keyframe.image), "frame": index, "strength": strength})
    given = {name: value for name, value in params.items() if value is not None}
    return given | ({"keyframes": others} if others else {})


def _measures(job: Job) -> dict[str, Any]:
    """What a clip of a video has from it, and may not be said again."""
    fps = job.request.fps
    return {
        "width": job.request.width,
        "height": job.request.height,
        "num_frames": AUTO if job.num_frames is None else job.num_frames,
        "fps": int(fps) if fps == int(fps) else fps,
    }


def _result(job: Job) -> VideoResponse | None:
    clip = job.result
    if clip is None or job.file_id is None:
        return None
    return VideoResponse(
        file_id=job.file_id,
        video_bytes=job.file_size,
        mode=job.request.mode,
        prompt=clip.prompt or job.request.prompt,
        params=_params(job),
        has_audio=clip.audio_sample_rate is not None,
        timings=Timings(total_s=round(clip.total_seconds, 3)),
        model=clip.model,
        warnings=list(clip.warnings),
        provenance=clip.provenance,
        phase_seconds={phase: round(seconds, 3) for phase, seconds in clip.seconds.items()},
        quality=clip.quality,
        retried_for=list(clip.retried_for),
        fake=job.fake,
    )


def record(file: files.FileRecord) -> FileRecord:
    """A file in this dialect."""
    return FileRecord(
        file_id=file.id,
        filename=file.filename,
        content_type=file.content_type,
        size=file.size,
        created_at=file.created_at,
        meta=dict(file.meta),
    )
