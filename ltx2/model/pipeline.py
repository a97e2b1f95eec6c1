"""The recipe of one generation."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ltx2.engine import Cancelled, Phase
from ltx2.geometry import Grid
from ltx2.media.audio import Waveform, fit
from ltx2.media.footage import Footage
from ltx2.media.video import Chunk
from ltx2.model.components import Components
from ltx2.model.conditioning import (
    Conditioning,
    InitialLatents,
    SoundConditioning,
    Stream,
    add_noise,
    audio_stream,
    draw_noise,
    pack_video,
    unpack_video,
    video_stream,
)
from ltx2.model.decode import decode_sound, decode_video, to_uint8_chunks
from ltx2.model.denoiser import Contexts
from ltx2.model.guidance import Guide
from ltx2.model.inputs import LOOPING, Inputs
from ltx2.model.known import Shot, encode_pictures, encode_track
from ltx2.model.lora import Lora, applied
from ltx2.model.prompts import encode_prompts
from ltx2.model.sampler import denoise
from ltx2.model.schedule import Sigmas, sigmas_for
from ltx2.model.upsample import upsample
from ltx2.pieces import NOTHING, Piece
from ltx2.plan import STILL, Plan, keeps_sound
from ltx2.recipes import ANCESTRAL_SEED_OFFSET, NEUTRAL, REFINE_SIGMAS, Kind, Sampler
from ltx2.request import GenerationRequest

UNGUIDED = Guide(NEUTRAL, NEUTRAL, ())

Report = Callable[[Phase, int, int], None]
"""Told a phase and, while denoising, the finished step and the number of steps."""


@dataclass(frozen=True)
class Result:
    """A decoded clip, not yet a file."""

    pictures: Tensor | None
    """``[1, 3, num_frames, height, width]``, -1 … 1, on the model's device, of a clip that was made at once. None
    where only the sound is wanted."""
    sound: Waveform | None
    """None where none is wanted."""
    footage: Footage | None = None
    """Where the pictures are of a clip that was not made at once."""

    def chunks(self) -> Iterator[Chunk] | None:
        """All frames in order, a few at a time; None where only the sound is wanted."""
        if self.footage is not None:
            return self.footage.chunks()
        return None if self.pictures is None else to_uint8_chunks(self.pictures)


@torch.inference_mode()
def generate(
    components: Components,
    request: GenerationRequest,
    plan: Plan,
    inputs: Inputs,
    report: Report = lambda *_: None,
    cancelled: Cancelled = lambda: False,
) -> Result:
    """Make the pictures and the sound of a request, piece by piece.

    Raises:
        Canceled: ``cancelled()`` answered True at a step.
    """
    report("encoding", 0, 0)
    prompts = encode_texts(components, request, plan, inputs.loras)
    # one generator for all noise of a clip, as in the official code: a second stage draws on where the first ended
    noise = torch.Generator().manual_seed(request.seed or 0)
    footage = open_footage(components, request, plan, inputs)

    def take(piece: Piece, number: int) -> tuple[Tensor | None, Waveform | None]:
        """What one piece makes of pictures and sound; of the last one the pictures only if they are to be seen."""
        done = number * plan.run_steps
        if done:
            report("encoding", done, plan.all_steps)
        shot = Shot(piece, inputs.heard(request, plan, piece), footage, number)
        video, audio = sample(components, request, plan, inputs, shot, prompts, noise, report, cancelled)
        is_last = piece is plan.pieces[-1]
        # before the last piece is decoded, there are more steps to come
        report("decoding", *((0, 0) if is_last else (done + plan.run_steps, plan.all_steps)))
        is_seen = piece.pictures != NOTHING and not (is_last and request.is_sound_only)
        # the sound needs no noise, so it is the same whether or not there are pictures
        pictures = decode_video(components, video.tokens, plan.grid_of(piece), noise) if is_seen else None
        sound = make_sound(components, request, shot.heard, audio.tokens) if piece.sound != NOTHING else None
        return pictures, sound

    if plan.makes_still and (still := take(STILL, 0)[0]) is not None:
        inputs = replace(inputs, still=next(to_uint8_chunks(still))[0])
        request = request.model_copy(update={"keyframes": (LOOPING, *request.keyframes)})
    if footage is None:
        return Result(*take(plan.pieces[0], int(plan.makes_still)))
    for number, piece in enumerate(plan.pieces, int(plan.makes_still)):
        add(footage, piece, *take(piece, number))
    return Result(None, whole_sound(request, plan, inputs, footage), footage)


def sample(
    components: Components,
    request: GenerationRequest,
    plan: Plan,
    inputs: Inputs,
    shot: Shot,
    prompts: tuple[Contexts, Contexts],
    noise: torch.Generator,
    report: Report = lambda *_: None,
    cancelled: Cancelled = lambda: False,
) -> tuple[Stream, Stream]:
    """Denoise both streams of one piece in one stage or two: what is left is to decode them."""
    recipe = components.recipe
    full = plan.grid_of(shot.piece)
    grid = full.halved if plan.stages == 2 else full
    for_video = encode_pictures(components, request, inputs, shot, grid, scale=plan.stages)
    for_audio = encode_track(components, request, shot, grid)
    guide = Guide(plan.video, plan.audio, recipe.stg_blocks)
    # each piece has its own, or the same grain would come again and again
    fresh = step_noise(recipe.sampler, (request.seed or 0) + shot.number)
    stage = Stage(grid, sigmas_for(recipe.kind, plan.steps), guide, fresh, inputs.loras)

    def on_step(step: int) -> None:
        report("denoising", shot.number * plan.run_steps + step, plan.all_steps)

    on_step(0)
    video, audio = stage.run(components, for_video, for_audio, prompts, noise, on_step, cancelled)
    if plan.stages == 1 or not plan.refines:
        return video, audio

    larger = upsample(components, unpack_video(video.tokens, grid))
    for_video = encode_pictures(components, request, inputs, shot, full)
    given = refined(recipe.kind, larger, audio.tokens, for_video, for_audio)
    refinement = Stage(full, REFINE_SIGMAS, UNGUIDED, loras=(*inputs.loras, *components.refine_loras))
    return refinement.run(components, *given, prompts, noise, lambda step: on_step(plan.steps + step), cancelled)


def refined(
    kind: Kind, larger: Tensor, sound: Tensor, for_video: Iterable[Conditioning], for_audio: Iterable[Conditioning]
) -> tuple[list[Conditioning], list[Conditioning]]:
    """What a second stage knows of each stream: the first stage's result, and what the request gives.

    Args:
        kind: of the checkpoint.
        larger: ``[1, 128, F, h, w]``, the first stage's pictures, enlarged.
        sound: ``[1, T, 128]``, the first stage's sound.
        for_video, for_audio: what the request gives, images encoded at the larger size.
    """
    pictures = InitialLatents(pack_video(larger))
    if keeps_sound(kind):
        return [pictures, *for_video], [SoundConditioning(sound, strength=1.0)]
    return [pictures, *for_video], [InitialLatents(sound), *for_audio]


@dataclass(frozen=True)
class Stage:
    """One way down a schedule, on one grid."""

    grid: Grid
    sigmas: Sigmas
    guide: Guide
    step_noise: torch.Generator | None = None
    """Where an ancestral sampler's fresh noise comes from."""
    loras: tuple[tuple[Lora, float], ...] = ()
    """What the transformer wears, each with its scale."""

    def run(
        self,
        components: Components,
        for_video: Iterable[Conditioning],
        for_audio: Iterable[Conditioning],
        prompts: tuple[Contexts, Contexts],
        noise: torch.Generator,
        on_step: Callable[[int], None] = lambda _step: None,
        cancelled: Cancelled = lambda: False,
    ) -> tuple[Stream, Stream]:
        """Denoise both streams, starting from what is given and noise."""
        with ExitStack() as at_work:
            at_work.enter_context(components.using("transformer"))
            at_work.enter_context(applied(components.transformer, self.loras))
            streams = start(
                components.transformer, self.grid, components.device, for_video, for_audio, noise, self.sigmas[0]
            )
            return denoise(
                components.denoiser,
                *streams,
                self.sigmas,
                *prompts,
                self.guide,
                step_noise=self.step_noise,
                on_step=on_step,
                cancelled=cancelled,
            )


def encode_texts(
    components: Components, request: GenerationRequest, plan: Plan, loras: tuple[tuple[Lora, float], ...] = ()
) -> tuple[Contexts, Contexts]:
    """The contexts of the prompt and of the negative prompt (the former again when it is not needed)."""
    is_guided = plan.video.cfg != 1 or plan.audio.cfg != 1
    positive, negative = encode_prompts(
        components, request.prompt, plan.negative_prompt if is_guided else request.prompt, loras=loras
    )
    return positive, negative


def start(
    transformer: Any,
    grid: Grid,
    device: torch.device,
    for_video: Iterable[Conditioning],
    for_audio: Iterable[Conditioning],
    noise: torch.Generator,
    sigma: float,
) -> tuple[Stream, Stream]:
    """Both streams with all that is given, noised to level ``sigma``."""
    video, audio = video_stream(transformer, grid, device), audio_stream(transformer, grid, device)
    for conditioning in for_video:
        video = conditioning.apply(video)
    for conditioning in for_audio:
        audio = conditioning.apply(audio)
    drawn = draw_noise(noise, video, audio)
    return add_noise(video, drawn[0], sigma), add_noise(audio, drawn[1], sigma)


def step_noise(sampler: Sampler, seed: int) -> torch.Generator | None:
    """Where an ancestral sampler's fresh noise comes from; none for plain Euler."""
    return torch.Generator().manual_seed(seed + ANCESTRAL_SEED_OFFSET) if sampler == "euler_ancestral" else None


def open_footage(components: Components, request: GenerationRequest, plan: Plan, inputs: Inputs) -> Footage | None:
    """Where the pieces of a clip come together; None where there is but one, and nothing else."""
    if request.video is None and len(plan.pieces) == 1:
        return None
    rate = components.vocoder.config.output_sampling_rate
    return Footage(request.length, request.exact_fps, rate, inputs.source(request))


def add(footage: Footage, piece: Piece, pictures: Tensor | None, sound: Waveform | None) -> None:
    """Put what a piece has made to what there is."""
    first, last = piece.pictures
    if pictures is not None:
        # a few at a time, so that host memory never holds them twice
        for chunk in to_uint8_chunks(pictures[:, :, first - piece.start : last - piece.start]):
            footage.add_frames(first, chunk)
            first += len(chunk)
    if sound is not None:
        begin, end = (float(frame / footage.fps) for frame in piece.sound)
        footage.add_sound(sound, float(piece.start / footage.fps), (begin, end))


def whole_sound(request: GenerationRequest, plan: Plan, inputs: Inputs, footage: Footage) -> Waveform | None:
    """The sound track of a clip that was not made at once."""
    if not request.wants_sound:
        return None
    seconds, track = float(request.length / plan.fps), request.driving_audio
    if track is not None and track.strength == 1:
        return inputs.sound(track, seconds)
    return footage.sound(0.0, seconds)


def make_sound(
    components: Components, request: GenerationRequest, heard: Waveform | None, tokens: Tensor
) -> Waveform | None:
    """The sound track: the given sound itself if the clip follows it strictly, else the generated one."""
    if not request.wants_sound:
        return None
    track = request.driving_audio
    if track is not None and track.strength == 1 and heard is not None:
        return fit(heard, 0.0, float(request.length / request.exact_fps))
    return decode_sound(components, tokens)
