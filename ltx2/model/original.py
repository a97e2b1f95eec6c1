"""A checkpoint in Lightricks' own layout: one file, or the few files of LTX-2.5."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoderModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.duration_head import LTX2DurationHead
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor, nn

from ltx2.errors import NotReady
from ltx2.model import codecs, configs, keymaps
from ltx2.model.enhancers import enhancer_beside, writing_text_encoder
from ltx2.model.gemma import check_text_encoder, check_transformers, load_tokenizer, load_transformers
from ltx2.model.gemma4 import build_gemma4, check_gemma4, load_gemma4, load_tokenizer_bytes
from ltx2.model.groups import Group, Held, generation_of_file, sort
from ltx2.model.keymaps import KeyMap
from ltx2.model.layout import PROCESSOR, PROMPT_ENHANCER, title
from ltx2.model.parts import Module, Part
from ltx2.model.section import Section
from ltx2.model.source import Enhancer
from ltx2.model.weights import WeightsFile, check, fill, open_part, open_weights, understood
from ltx2.recipes import Generation

log = logging.getLogger(__name__)

TEXT_ENCODER = "the text encoder"
GEMMA_FOLDER = "set LTX2_TEXT_ENCODER to the folder of a Gemma 3 12B as transformers saves it"
GEMMA_FILE = "set LTX2_TEXT_ENCODER to LTX-2.5's own text-encoder file, which has the text projection as well"
OF_TEXT: frozenset[Group] = frozenset({"projection", "text_encoder", "tokenizer"})


@dataclass(frozen=True)
class Plan:
    """How one part is built, and where its weights are."""

    kind: Callable[..., Module]
    arguments: configs.Arguments
    keymap: KeyMap
    held: tuple[Held, ...]

    def build(self) -> Module:
        """The module without memory for its weights; its buffers are real, since not all of them are stored."""
        with understood(self.source), init_empty_weights(include_buffers=False):
            return self.kind(**self.arguments)

    def checked(self) -> Module:
        """The module built, once the headers say that it will get all its weights and no others."""
        module = self.build()
        converted = [item for held in self.held for item in self.keymap.convert(held.keys, held.shapes)]
        check(module, converted, source=self.source)
        return module

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights by the module's names, read and dequantised one at a time."""
        for held in self.held:
            with held.file.opened() as read:
                yield from self.keymap.convert(held.keys, held.dequantised(read))

    @property
    def source(self) -> str:
        return " and ".join(dict.fromkeys(held.file.name for held in self.held))


class OriginalFiles:
    """Implements :class:`ltx2.model.source.Source`. Making one reads headers only.

    Args:
        paths: files of one checkpoint, in any order; an upscaler may be among them.
        text_encoder: a folder with a Gemma 3 as transformers saves it (LTX-2.0 and 2.3), or LTX-2.5's text-encoder
            file where it is not among the paths.

    Raises:
        NotReady: a file is missing, damaged, or holds what is not understood; a configuration is not supported;
            the files are of several generations, or two of them hold the same part; the text encoder is another
            one than the checkpoint was trained with; a part has not exactly the weights its configuration says.
    """

    def __init__(self, paths: Sequence[Path], text_encoder: Path | None = None) -> None:
        self._folder = text_encoder if text_encoder and text_encoder.is_dir() else None
        extra = [text_encoder] if text_encoder and not self._folder else []
        self._files = [open_weights(path) for path in {path.resolve(): path for path in [*paths, *extra]}.values()]
        self.generation: Generation = _one_generation(self._files)
        self._held = self._each_once([held for file in self._files for held in _sorted(file)])
        self._plans = dict(self._planned())
        for config in {id(held.config): held.config for held in self._held.values()}.values():
            unread = [name for name in config.unread() if name.rpartition(".")[2] not in configs.UNUSED]
            if unread:
                log.warning("%s: nothing reads %s", config.file, ", ".join(unread))
        self._check_text_encoder()
        self._built = {part: plan.checked() for part, plan in self._plans.items()}
        transformer = self._held.get("transformer")
        self.num_layers: int = self._plans["transformer"].arguments["num_layers"] if transformer else 0
        self.stored_fp8 = bool(transformer and transformer.fp8_weights)

    @property
    def has_conv_decoder(self) -> bool:
        """Whether its video VAE can decode: one that came with a diffusion decoder cannot."""
        return "vae" in self._held

    def parts(self) -> frozenset[Part]:
        """The parts it has."""
        text: set[Part] = {"text_encoder"} if self._folder or "text_encoder" in self._held else set()
        return frozenset(self._plans.keys() | text)

    def parameters(self, part: Part) -> int:
        """How many weights a part has, from the headers.

        Raises:
            NotReady: it does not have the part.
        """
        if part != "text_encoder":
            plan = self._plan(part)
            converted = (plan.keymap.convert(held.keys, held.shapes) for held in plan.held)
            return sum(tensor.numel() for weights in converted for _, tensor in weights)
        if self._folder is None and (held := self._held.get("text_encoder")):
            return sum(held.tensors[key].numel for key in held.keys)
        files = open_part(self._text_folder(), TEXT_ENCODER)
        return sum(stored.numel for file in files for stored in file.tensors.values())

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:
        """Read a part into host memory. See :meth:`ltx2.model.source.Source.load`."""
        started = time.perf_counter()
        if part != "text_encoder":
            plan = self._plan(part)
            module = self._built.pop(part) if part in self._built else plan.build()
            done, plan = _keep_fp8(module, plan, dtype) if keep_fp8 and part == "transformer" else ((), plan)
            fill(module, plan.weights(), dtype, source=plan.source, done=done)
        elif self._folder is None and (held := self._held.get("text_encoder")):
            module = load_gemma4(held, dtype)
        else:
            module = load_transformers(self._text_folder(), dtype)
        log.info("read the %s in %.1f s", part, time.perf_counter() - started)
        return module.eval().requires_grad_(requires_grad=False)

    def tokenizer(self) -> Any:
        """The text encoder's tokenizer, padding on the left.

        Raises:
            NotReady: there is no text encoder, or no tokenizer with it.
        """
        if self._folder is None and (held := self._held.get("tokenizer")):
            return load_tokenizer_bytes(held)
        folder = self._text_folder()
        # beside the text encoder, where it was taken from a folder in the layout diffusers saves
        beside = folder.parent / "tokenizer"
        is_inside = (folder / "tokenizer_config.json").is_file() or not beside.is_dir()
        return load_tokenizer(folder if is_inside else beside)

    def enhancer(self) -> Enhancer:
        """What writes prompts out. See :class:`ltx2.model.source.Source`."""
        if self.generation == "2.5":
            folder = self._files[0].path.parent
            return enhancer_beside(folder.parent if (folder.parent / PROMPT_ENHANCER).is_dir() else folder)
        folder = self._text_folder()
        places = [folder, folder.parent / PROCESSOR, folder.parent / "tokenizer"]
        return writing_text_encoder(places, f"the text encoder {title(folder)!r}")

    def _each_once(self, all_held: Sequence[Held]) -> dict[Group, Held]:
        found: dict[Group, Held] = {}
        for held in all_held:
            if held.group == "text_encoder" and self.generation != "2.5":
                raise NotReady(
                    f"{held.file.name} holds a text encoder the way LTX-2.5 has it, not LTX-{self.generation}",
                    hint=GEMMA_FOLDER,
                )
        for held in all_held:
            if other := found.get(held.group):
                hint = "set LTX2_TEXT_ENCODER to one of them" if held.group in OF_TEXT else "take one of them away"
                what = held.group.replace("_", " ")
                raise NotReady(f"{other.file.name} and {held.file.name} both hold the {what}", hint=hint)
            found[held.group] = held
        return found

    def _planned(self) -> Iterator[tuple[Part, Plan]]:
        """How each part is built of which there are weights."""
        held = self._held
        if own := held.get("transformer"):
            arguments = _read(configs.transformer, own.config)
            yield "transformer", Plan(LTX2VideoTransformer3DModel, arguments, keymaps.TRANSFORMER, (own,))
        if (own := held.get("connectors")) and (projection := held.get("projection")):
            arguments = _read(configs.connectors, own.config, _width(projection))
            yield "connectors", Plan(LTX2TextConnectors, arguments, keymaps.CONNECTORS, (own, projection))
        if own := held.get("vae"):
            arguments = _read(codecs.video_encoder, own.config) | _read(codecs.video_decoder, own.config)
            yield "vae", Plan(AutoencoderKLLTX2Video, arguments, _vae_keys(arguments), (own,))
        if own := held.get("diffusion_vae"):
            decoder = replace(own, keys=tuple(key for key in own.keys if not key.startswith("encoder.")))
            arguments = _read(codecs.diffusion_decoder, own.config)
            plan = Plan(LTX2VideoDiffusionDecoderModel, arguments, keymaps.DIFFUSION_DECODER, (decoder,))
            yield "diffusion_decoder", plan
            # both files of 2.5 have the same encoder: this one's is only needed where the other is not given
            encoder = replace(own, keys=tuple(key for key in own.keys if not key.startswith("decoder.")))
            arguments = _read(codecs.video_encoder, own.config)
            if "vae" not in held:
                yield "vae", Plan(_video_encoder, arguments, _vae_keys(arguments), (encoder,))
        if own := held.get("audio_vae"):
            yield (
                "audio_vae",
                Plan(AutoencoderKLLTX2Audio, _read(codecs.audio_vae, own.config), keymaps.AUDIO_VAE, (own,)),
            )
        if own := held.get("vocoder"):
            arguments = _read(codecs.vocoder, own.config)
            kind = LTX2VocoderWithBWE if "bwe_hidden_channels" in arguments else LTX2Vocoder
            yield "vocoder", Plan(kind, arguments, keymaps.VOCODER, (own,))
        if own := held.get("upsampler"):
            yield (
                "upsampler",
                Plan(LTX2LatentUpsamplerModel, _read(configs.upsampler, own.config), keymaps.UPSAMPLER, (own,)),
            )
        if own := held.get("duration_head"):
            arguments = _read(configs.duration_head, own.config)
            yield "duration_head", Plan(LTX2DurationHead, arguments, keymaps.DURATION_HEAD, (own,))

    def _check_text_encoder(self) -> None:
        projection, transformer = self._held.get("projection"), self._held.get("transformer")
        gemma = self._held.get("text_encoder")
        if self._folder:
            width = _width(projection) if projection else None
            if width is None and self.generation == "2.5":
                raise NotReady(f"the text encoder {title(self._folder)!r} has no text projection", hint=GEMMA_FILE)
            if width is not None:
                whose = f"the text encoder {title(self._folder)!r}"
                check_text_encoder(self._folder, self.generation, width, whose)
            check_transformers(self._folder, TEXT_ENCODER)
        elif gemma and projection:
            with understood(gemma.file.name):
                check_gemma4(gemma.file, _width(projection), transformer.file if transformer else None)
            build_gemma4(gemma)

    def _text_folder(self) -> Path:
        if self._folder is None:
            raise NotReady(
                f"there is no text encoder with {self._files[0].name}",
                hint=GEMMA_FILE if self.generation == "2.5" else GEMMA_FOLDER,
            )
        return self._folder

    def _plan(self, part: Part) -> Plan:
        if plan := self._plans.get(part):
            return plan
        names = ", ".join(file.name for file in self._files)
        if part == "connectors" and "connectors" in self._held:
            raise NotReady(f"the text projection that belongs to the connectors is not in {names}", hint=GEMMA_FILE)
        raise NotReady(f"there is no {part.replace('_', ' ')} in {names}")


def _sorted(file: WeightsFile) -> list[Held]:
    with understood(file.name):
        return sort(file)


def _read(arguments: Callable[..., configs.Arguments], config: Section, *more: Any) -> configs.Arguments:
    with understood(config.file):
        return arguments(config, *more)


def _one_generation(files: Sequence[WeightsFile]) -> Generation:
    """The generation all files are of. An upscaler alone may not say, and works with any."""
    first: dict[Generation, str] = {}
    for file in files:
        if generation := generation_of_file(file):
            first.setdefault(generation, file.name)
    if len(first) > 1:
        of_which = ", ".join(f"{name} is of LTX-{generation}" for generation, name in first.items())
        raise NotReady(f"the files are not of one checkpoint: {of_which}")
    return next(iter(first), "2.0")


def _width(projection: Held) -> int:
    """Features the text projection takes."""
    widths = {projection.tensors[key].shape[-1] for key in projection.keys if key.endswith("aggregate_embed.weight")}
    if len(widths) != 1:
        raise NotReady(f"{projection.file.name} has no text projection that fits together")
    return widths.pop()


def _vae_keys(arguments: configs.Arguments) -> KeyMap:
    return keymaps.video_vae(len(arguments["layers_per_block"]), len(arguments.get("decoder_layers_per_block", ())))


def _video_encoder(**arguments: Any) -> Module:
    """A video VAE that cannot decode: the decoder diffusers builds without being asked is taken out again."""
    vae = AutoencoderKLLTX2Video(**arguments)
    vae.decoder = None
    return vae


def _keep_fp8(module: Module, plan: Plan, dtype: torch.dtype) -> tuple[set[str], Plan]:
    """Put linears that compute in float8 where the checkpoint stores float8.

    Returns:
        Their names, and the plan for the rest. What does not fit its module is left to the rest, to be refused.
    """
    from ltx2.model.fp8 import Fp8Linear

    (held,) = plan.held
    modules = dict(module.named_modules())
    done: dict[str, set[str]] = {}
    with held.file.opened() as read:

        def scale(key: str) -> Tensor | None:
            return read(key) if key in held.tensors else None

        for key in held.fp8_weights:
            original = key.removesuffix(".weight")
            name = keymaps.rename(key, plan.keymap.rules).removesuffix(".weight")
            linear = modules.get(name)
            keys = {leaf: f"{original}.{leaf}" for leaf in ("weight", "bias") if f"{original}.{leaf}" in held.tensors}
            stored = {leaf: held.tensors[of].shape for leaf, of in keys.items()}
            if not isinstance(linear, nn.Linear) or stored != {k: v.shape for k, v in linear.named_parameters()}:
                continue
            module.set_submodule(
                name,
                Fp8Linear.from_weights(
                    read(key),
                    scale(f"{key}_scale"),
                    read(keys["bias"]) if "bias" in keys else None,
                    dtype=dtype,
                    input_scale=scale(f"{original}.input_scale"),
                ),
            )
            done[name] = set(keys.values())
    rest = tuple(sorted(set(held.keys).difference(*done.values())))
    return set(done), replace(plan, held=(replace(held, keys=rest),))
