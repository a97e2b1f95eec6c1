"""The denoise loop against the numbers of the official LTX-2 code.

From each case file a test takes only the seed, the encoded image, audio and initial latents and the
contexts. Everything else (noise, sigmas, masks, coordinates, start tokens) is built by the functions the
pipeline calls, and compared with the file's.
"""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ltx2.geometry import exact_fps, make_grid
from ltx2.model.components import Components
from ltx2.model.conditioning import (
    Conditioning,
    ImageConditioning,
    SoundConditioning,
    draw_noise,
    pack_audio,
)
from ltx2.model.denoiser import Contexts, Denoiser
from ltx2.model.guidance import Guide
from ltx2.model.pipeline import Stage, refined, start, step_noise
from ltx2.model.schedule import sigmas_for
from ltx2.recipes import REFINE_SIGMAS, Generation, Kind, Sampler, Scales, recipe_for

FOLDER = Path(os.environ.get("LTX2_GOLDENS") or Path(__file__).parent.parent / "goldens")
CASES = sorted(path for path in FOLDER.glob("[0-9].[0-9]-*.safetensors"))
TOLERANCE = 1e-5
CPU = torch.device("cpu")


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert relative(ours, theirs) < TOLERANCE


@cache
def denoiser_of(version: str) -> Denoiser:
    model = LTX2VideoTransformer3DModel(**json.loads((FOLDER / f"transformer-{version}.json").read_text()))
    model.load_state_dict(load_file(FOLDER / f"transformer-{version}.safetensors"))
    return Denoiser(model.eval())


def only(transformer: LTX2VideoTransformer3DModel) -> Components:
    """An LTX-2 of which nothing but the transformer is needed."""
    rest = dict.fromkeys(("tokenizer", "text_encoder", "connectors", "vae", "audio_vae", "vocoder"))
    return Components(name="", recipe=recipe_for("2.0", "dev"), transformer=transformer, device=CPU, **rest)


def scales(guidance: dict[str, float]) -> Scales:
    return Scales(cfg=guidance["cfg"], stg=guidance["stg"], modality=guidance["mod"], rescale=guidance["rescale"])


def plan(version: Generation, sigmas: Tensor) -> tuple[tuple[float, ...], Sampler]:
    """The pipeline's schedule that a case was made with, and the sampler that goes with it.

    Which kind of checkpoint it was is in no file: the schedules of both are tried, and one must fit.
    """
    steps = len(sigmas) - 1
    kinds: tuple[Kind, ...] = ("dev", "distilled")
    plans = [(sigmas_for(kind, steps), recipe_for(version, kind).sampler) for kind in kinds]
    for ours, sampler in [*plans, (REFINE_SIGMAS, "euler")]:
        if len(ours) == len(sigmas) and relative(torch.tensor(ours), sigmas) < TOLERANCE:
            return ours, sampler
    raise AssertionError(f"no schedule of {steps} steps is {sigmas.tolist()}")


def test_there_are_cases() -> None:
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@torch.inference_mode()
def test_case(path: Path) -> None:
    golden = load_file(path)
    with safe_open(path, "pt") as file:
        case = json.loads(file.metadata()["case"])
    denoiser = denoiser_of(case["version"])
    grid = make_grid(case["width"], case["height"], case["frames"], exact_fps(case["fps"]))
    assert (grid.latent_frames, grid.latent_height, grid.latent_width) == (
        case["latent_frames"],
        case["latent_height"],
        case["latent_width"],
    )
    assert (grid.video_tokens, grid.audio_latent_frames) == (case["video_tokens"], case["audio_tokens"])

    for_video: list[Conditioning] = []
    for_audio: list[Conditioning] = []
    for number, image in enumerate(case["images"]):
        latents = golden[f"image_{number}_latents"]
        for_video.append(ImageConditioning(latents, image["pixel_frame"], image["strength"], case["fps"]))
    if case["audio_frozen"]:
        for_audio.append(SoundConditioning(pack_audio(golden["audio_latents"]), strength=1.0))
    if "initial_video_latents" in golden:
        sound = pack_audio(golden.get("initial_audio_latents", golden.get("audio_latents")))
        for_video, for_audio = refined("distilled", golden["initial_video_latents"], sound, for_video, for_audio)

    sigmas, sampler = plan(case["version"], golden["sigmas"])
    assert sampler == case["sampler"]
    noise = torch.Generator().manual_seed(case["noise_seed"])
    video, audio = start(denoiser.transformer, grid, CPU, for_video, for_audio, noise, sigmas[0])
    assert_close(video.tokens, golden["start_video_tokens"])
    assert_close(audio.tokens, golden["start_audio_tokens"])
    assert_close(video.mask, golden["video_mask"])
    assert_close(audio.mask, golden["audio_mask"])
    assert_close(video.positions, golden["video_positions"])
    assert_close(audio.positions, golden["audio_positions"])
    if "video_keyframes_mask" in golden:
        assert video.keyframes_mask is not None
        assert torch.equal(video.keyframes_mask, golden["video_keyframes_mask"])
    drawn = draw_noise(torch.Generator().manual_seed(case["noise_seed"]), video, audio)
    assert torch.equal(drawn[0], golden["video_noise"])
    assert torch.equal(drawn[1], golden["audio_noise"])
    fresh = step_noise(sampler, case["noise_seed"])
    assert (fresh is not None) == ("step_noise_video" in golden)
    for step in range(len(golden.get("step_noise_video", []))):
        drawn = draw_noise(fresh, video, audio)
        assert torch.equal(drawn[0][0], golden["step_noise_video"][step])
        assert torch.equal(drawn[1][0], golden["step_noise_audio"][step])

    blocks = set(case["video_guidance"]["blocks"]) | set(case["audio_guidance"]["blocks"])
    guide = Guide(scales(case["video_guidance"]), scales(case["audio_guidance"]), tuple(sorted(blocks)))
    prompts = (
        Contexts(golden["video_context"], golden["audio_context"]),
        Contexts(golden["negative_video_context"], golden["negative_audio_context"]),
    )
    out_video, out_audio = Stage(grid, sigmas, guide, step_noise(sampler, case["noise_seed"])).run(
        only(denoiser.transformer), for_video, for_audio, prompts, noise.manual_seed(case["noise_seed"])
    )
    assert_close(out_video.tokens, golden["out_video_tokens"])
    assert_close(out_audio.tokens, golden["out_audio_tokens"])
