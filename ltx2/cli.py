"""Makes one clip at the command line: ``python -m ltx2.cli --input test_input.json``.

With ``--again clip.mp4`` it makes one again, from what that file says of itself.
"""

import argparse
import asyncio
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from ltx2.checker import checked
from ltx2.engine import Clip
from ltx2.errors import InvalidRequest, LTX2Error
from ltx2.imprint import asked_again, read_imprint
from ltx2.media.probe import probe_sound, probe_video
from ltx2.media.tags import read_comment
from ltx2.model.local import LocalEngine
from ltx2.payload import Sources, parse
from ltx2.provenance import LIBRARIES, versions
from ltx2.request import GenerationRequest
from ltx2.settings import Settings, load_settings
from ltx2.studio.direct import Direct
from ltx2.terminal import TerminalProgress


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 after saying what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, help='JSON with the fields of POST /generate, or {"input": {…}}')
    source.add_argument("--again", type=Path, metavar="CLIP", help="a clip of ours, to be made again")
    parser.add_argument(
        "--media",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="with --again: an image, sound or video that the clip was made of",
    )
    parser.add_argument("--output", type=Path, help="where to put the file (default: below LTX2_DATA_DIR)")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings()
        logging.basicConfig(level=settings.log_level, format="%(levelname)s %(message)s")
        if options.again is None:
            if options.media:
                raise InvalidRequest("it goes with --again; --input has its media inside", field="--media")
            request, clip, path = make(settings, *parse(read_body(options.input)), options.output)
        else:
            request, clip, path = make_again(settings, options.again, options.media, options.output)
    except LTX2Error as error:
        print(f"error: {_harmless(str(error))}", file=sys.stderr)
        return 1
    print(report(request, clip, path))
    return 0


def read_body(file: Path) -> object:
    """The request in a file, whether or not it is wrapped as a RunPod job.

    Raises:
        InvalidRequest: there is no such file, or it is not JSON.
    """
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidRequest(f"{file} is not JSON: {error}") from None
    return body["input"] if isinstance(body, dict) and "input" in body else body


def make_again(
    settings: Settings, clip: Path, media: list[str], output: Path | None
) -> tuple[GenerationRequest, Clip, Path]:
    """Make a clip again from what its file says, by the settings that show in it. What else differs is warned of.

    Args:
        settings: of this machine.
        clip: a file of this program's.
        media: ``NAME=FILE`` for each image, sound and video it was made of.
        output: where to put the new one.

    Raises:
        InvalidRequest: the file does not say how it was made, or the media are not those.
    """
    imprint = read_imprint(read_comment(clip), clip.name)
    noted = imprint.provenance
    request, sources = asked_again(imprint, dict(_named(text) for text in media))
    settings = noted.applied_to(settings)
    here = noted.model_copy(update={"model": settings.model_name, "versions": dict(versions(*LIBRARIES))})
    early = list(noted.differences(here))
    for difference in early:
        print(f"warning: {_harmless(difference)}", file=sys.stderr)
    request, made, path = make(settings, request, sources, output)
    if made.provenance is not None:
        found = tuple(each for each in noted.differences(made.provenance) if each not in early)
        made = replace(made, warnings=(*made.warnings, *found))
    return request, made, path


def _harmless(text: str) -> str:
    """What may have been in a stranger's file, so that it stays one line and tells the terminal nothing."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _named(text: str) -> tuple[str, bytes]:
    name, equals, file = text.partition("=")
    if not equals:
        raise InvalidRequest(f"{text} should be NAME=FILE", field="--media")
    try:
        return name, Path(file).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}", field=name) from None


def make(
    settings: Settings, asked: GenerationRequest, sources: Sources, output: Path | None
) -> tuple[GenerationRequest, Clip, Path]:
    """Make the clip of a request, with a progress bar, and move it to where it is wanted."""

    async def run() -> tuple[GenerationRequest, Clip, Path]:
        with TerminalProgress() as progress:
            if output is not None and output.suffix.lower() not in ("", f".{asked.output.format}"):
                raise InvalidRequest(f"{output.name} is no name for a {asked.output.format} file", field="--output")
            async with studio.run(asked, sources, progress) as (request, clip):
                target = output or settings.outputs_dir / clip.path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                return request, clip, Path(shutil.move(clip.path, target))

    studio = Direct(settings, checked(LocalEngine(settings), settings))
    try:
        return asyncio.run(run())
    finally:
        studio.close()


def report(request: GenerationRequest, clip: Clip, path: Path) -> str:
    """What was made, read back from the file itself."""
    phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in clip.seconds.items())
    lines = [
        *(f"note: {_harmless(warning)}" for warning in clip.warnings),
        *([f"prompt: {_harmless(clip.prompt)}"] if clip.prompt and request.enhance_prompt else []),
        *(_sound_lines if request.is_sound_only else _video_lines)(path, request, clip),
        phases,
        str(path.resolve()),
    ]
    return "\n".join(lines)


def _video_lines(path: Path, request: GenerationRequest, clip: Clip) -> tuple[str, str]:
    facts = probe_video(path, request.output.format)
    sound = f"{facts.audio_codec} {facts.audio_sample_rate} Hz" if facts.audio_codec else "no sound"
    rate = facts.fps if request.output.format != "gif" else f"{float(facts.fps):.4g}"
    return (
        f"{request.mode}: {facts.width}x{facts.height}, {facts.num_frames} frames at {rate} fps",
        f"{facts.video_codec} {facts.pixel_format}, {sound}, {facts.size_bytes} bytes, seed {clip.seed}",
    )


def _sound_lines(path: Path, request: GenerationRequest, clip: Clip) -> tuple[str, str]:
    facts = probe_sound(path)
    return (
        f"{request.mode}: the sound alone, {facts.seconds:.3f} s",
        f"{facts.codec} {facts.sample_rate} Hz, {facts.channels} channels, {facts.size_bytes} bytes, seed {clip.seed}",
    )


if __name__ == "__main__":
    sys.exit(main())
