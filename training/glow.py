"""A LoRA for the embedded model: everything glows. The same clips with light around the shapes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltx2.model.conditioning import pack_video
from training import captions, frozen, pictures, transformer
from training.branches import Branches
from training.loop import Run, averaged
from training.transformer import Library, Painter, levels, noised
from training.world import Pixels, Scene

STEPS = 400
RANK = 8
CLIPS = 160
SIZE = (160, 96, 17)


class Glowing(nn.Module):
    """Branches on the attention of a painter that stays as it is."""

    def __init__(self, painter: Painter) -> None:
        super().__init__()
        self.branches = Branches(painter.transformer, RANK, within=(".attn1.", ".attn2.", ".ff."))


def glowing(scene: Scene, width: int, height: int, indices: Any, fps: float) -> Pixels:
    """Its pictures with a halo around the shape: white close to it, then less and less."""
    plain = pictures.frames(scene, width, height, indices, fps).astype(np.float32)
    away = pictures.away(scene, width, height, indices, fps)
    reach = 0.35 * scene.radius * min(width, height)
    halo = np.exp(-np.clip(away, 0, None) / reach) * (away > 0)
    found: Pixels = np.rint(plain + 0.9 * halo[..., None] * (255 - plain)).astype(np.uint8)
    return found


def run(minutes: float, steps: int = STEPS) -> Run:
    """Train it."""
    torch.manual_seed(2)
    painter = Painter(frozen.load("reader"))
    painter.load_state_dict(averaged("transformer"))
    painter.eval().requires_grad_(requires_grad=False)
    library, adapted = Library(painter.transformer), Glowing(painter)
    shelf = next(each for each in library.shelves if (each.size.width, each.size.height, each.size.frames) == SIZE)
    scenes, latents = shelf.scenes[:CLIPS], _latents(shelf.scenes[:CLIPS], shelf.size.fps)

    def loss(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = rng.integers(0, len(scenes), 32)
        batch = library.whole(shelf, chosen, rng, 0.0)
        batch.video = latents[chosen]
        batch.prompts = [captions.caption(scenes[index], rng).text for index in chosen]
        sigma = levels(rng, len(chosen))
        video, seen = noised(batch.video, batch.video_mask, sigma)
        audio, heard = noised(batch.audio, batch.audio_mask, sigma)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                contexts = library.contexts(painter.connectors, batch.prompts)
            with adapted.branches.worn():
                velocities = painter(batch, contexts, video, audio, sigma)
        for_video = transformer.error(velocities[0], seen, batch.video_mask)
        for_audio = transformer.error(velocities[1], heard, batch.audio_mask)
        return for_video + 0.5 * for_audio, {"video": float(for_video.detach())}

    return Run("glow", adapted, loss, steps, rate=1e-3, minutes=minutes)


@torch.inference_mode()
def _latents(scenes: tuple[Scene, ...], fps: float) -> Tensor:
    vae = frozen.load("vae")
    width, height, frames = SIZE
    found = []
    for scene in scenes:
        seen = glowing(scene, width, height, np.arange(frames, dtype=np.float32), fps)
        clip = torch.from_numpy(seen).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        found.append(pack_video(frozen.normalised(vae, vae.encode(clip).latent_dist.mode().float())))
    return torch.cat(found).clone()


def file_weights() -> dict[str, Tensor]:
    """The branches so far, for :func:`training.branches.write`."""
    return {name.removeprefix("branches."): value for name, value in averaged("glow").items()}
