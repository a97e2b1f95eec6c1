"""What the embedded model is asked, and how well it did: for its tests, its card and ``bench.quality``.

Each trial makes clips through :mod:`ltx2.model.pipeline` and gives figures, higher is better. Nothing here decides what
is good enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from ltx2.media.audio import Waveform
from ltx2.model.components import Components
from ltx2.model.inputs import Inputs
from ltx2.model.pipeline import generate
from ltx2.plan import make_plan
from ltx2.request import GenerationRequest, Keyframe
from training import captions, pictures, senses, sounds
from training.captions import Vocabulary
from training.world import Floats, Motion, Pixels, Scene

WIDTH, HEIGHT, FRAMES, FPS = 160, 96, 33, 24.0
RATE = 16_000
MOMENTS = 4
"""Every so many frames are looked at."""


@dataclass(frozen=True)
class Clip:
    """What came out."""

    frames: Pixels
    sound: Waveform | None
    fps: float

    @property
    def sights(self) -> list[senses.Sight]:
        """What some of its frames show."""
        return [senses.look(frame) for frame in self.frames[::MOMENTS]]


def make(components: Components, prompt: str, media: Mapping[str, bytes] | None = None, **fields: Any) -> Clip:
    """One clip, small unless told otherwise."""
    told: dict[str, Any] = {
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": FRAMES,
        "fps": FPS,
        "seed": 1,
        "prompt": prompt,
    } | fields
    request = GenerationRequest(**told)
    plan = make_plan(request, components.recipe, can_refine=components.can_refine)
    inputs = Inputs(media or {}, max_image_megapixels=10, max_audio_seconds=60)
    made = generate(components, request, plan, inputs)
    return Clip(np.concatenate(list(made.chunks() or ())), made.sound, request.fps)


def png(picture: Pixels) -> bytes:
    """A picture as a file."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def wav(sound: Floats, rate: int = RATE) -> bytes:
    """A sound ``[channels, samples]`` as a file."""
    file = BytesIO()
    soundfile.write(file, sound.T, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def picture(scene: Scene, frame: float = 0, width: int = WIDTH, height: int = HEIGHT, fps: float = FPS) -> Pixels:
    """What a scene looks like at a frame."""
    found: Pixels = pictures.frames(scene, width, height, np.array([frame], np.float32), fps)[0]
    return found


@dataclass(frozen=True)
class Verdict:
    """Whether a clip shows and sounds like what was said."""

    colour: bool
    shape: bool
    ground: bool
    motion: bool
    tone: bool

    @property
    def holds(self) -> bool:
        """Everything that is to be seen is right."""
        return self.colour and self.shape and self.ground and self.motion


def judge(clip: Clip, scene: Scene) -> Verdict:
    """A clip beside what was said."""
    sights = clip.sights
    heard = None if clip.sound is None else senses.pitch(clip.sound.samples, clip.sound.sample_rate)[0]
    return Verdict(
        senses.most(sights, "colour") == scene.colour,
        senses.most(sights, "shape") == scene.shape,
        senses.most(sights, "ground") == scene.ground,
        senses.motion(sights) == scene.motion,
        heard == scene.colour,
    )


def asked(count: int, seed: int, vocabulary: Vocabulary, *, unseen: bool) -> list[tuple[Scene, str]]:
    """Scenes and what is said of them, nothing left out."""
    rng = np.random.default_rng(seed)
    scenes = [Scene.draw(rng, unseen=unseen) for _ in range(count)]
    return [(scene, captions.caption(scene, rng, vocabulary, whole=True).text) for scene in scenes]


def prompted(components: Components, questions: Sequence[tuple[Scene, str]], **fields: Any) -> list[Clip]:
    """A clip for each prompt."""
    return [make(components, prompt, seed=seed, **fields) for seed, (_, prompt) in enumerate(questions)]


def shares(clips: Sequence[Clip], questions: Sequence[tuple[Scene, str]], shift: int = 0) -> dict[str, float]:
    """The fraction of clips that is right in each respect.

    Args:
        clips: of :func:`prompted`.
        questions: what was asked.
        shift: judge each clip by what another was asked: what somebody gets who did not listen.
    """
    turned = [*questions[shift:], *questions[:shift]]
    verdicts = [judge(clip, scene) for clip, (scene, _) in zip(clips, turned, strict=True)]
    names = ("colour", "shape", "ground", "motion", "tone", "holds")
    return {name: float(np.mean([getattr(verdict, name) for verdict in verdicts])) for name in names}


def keyframed(
    components: Components, scene: Scene, frames: Sequence[int], strength: float = 1.0, **fields: Any
) -> Clip:
    """A clip of a moving scene that is given its pictures at some frames, and a prompt without any motion."""
    size = {name: fields.get(name, default) for name, default in (("width", WIDTH), ("height", HEIGHT))}
    media = {f"image {frame}": png(picture(scene, frame, **size)) for frame in frames}
    keyframes = tuple(
        Keyframe(image=f"image {frame}", frame="first" if frame == 0 else frame, strength=strength) for frame in frames
    )
    return make(components, f"a {scene.colour} {scene.shape} on {scene.ground}", media, keyframes=keyframes, **fields)


def likeness(clip: Clip, scene: Scene, frame: int) -> float:
    """PSNR of a clip's frame and the scene's, in decibels."""
    height, width = clip.frames.shape[1:3]
    return senses.psnr(clip.frames[frame], picture(scene, frame, width, height, clip.fps))


def voiced(scene: Scene, seconds: float) -> bytes:
    """A scene's sound as a file."""
    return wav(sounds.sound(scene, seconds, RATE))


def in_step(clip: Clip, scene: Scene) -> float:
    """How well the picture goes with a scene's sound: the correlation of what is seen with what should be, over time.

    Of a bounce its height, of a pulse its size.
    """
    sights = [senses.look(frame) for frame in clip.frames]
    look = scene.at(np.arange(len(sights), dtype=np.float32) / np.float32(clip.fps))
    if scene.motion is Motion.BOUNCE:
        seen, wanted = [sight.y for sight in sights], look.y
    else:
        seen, wanted = [sight.area for sight in sights], look.size**2
    if np.std(seen) < 1e-4:
        return 0.0
    return float(np.corrcoef(seen, wanted)[0, 1])
