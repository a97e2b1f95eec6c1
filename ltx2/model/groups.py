"""What belongs together in files of the original layout, told by the names of the weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from ltx2.errors import NotReady
from ltx2.model.codecs import DIFFUSION
from ltx2.model.keymaps import CORE
from ltx2.model.section import Section
from ltx2.model.weights import UNKNOWN, Read, Stored, WeightsFile, refuse
from ltx2.recipes import Generation

Group = Literal[
    "transformer",
    "connectors",
    "projection",
    "vae",
    "diffusion_vae",
    "audio_vae",
    "vocoder",
    "upsampler",
    "duration_head",
    "text_encoder",
    "tokenizer",
]

GROUPS: Final[tuple[tuple[str, Group], ...]] = (
    (re.escape(CORE) + r"(video|audio)_embeddings_connector\.", "connectors"),
    (re.escape(CORE), "transformer"),
    (r"text_embedding_projection\.", "projection"),
    (r"(vae\.)?(encoder|decoder|per_channel_statistics)\.", "vae"),
    (r"audio_vae\.", "audio_vae"),
    (r"vocoder\.", "vocoder"),
    (r"(initial_conv|initial_norm|res_blocks|upsampler|post_upsample_res_blocks|final_conv)\.", "upsampler"),
    (r"duration_head\.", "duration_head"),
    (
        r"(model\.(layers|embed_tokens|norm)|lm_head|vision_model|multi_modal_projector|audio_projector)\.",
        "text_encoder",
    ),
    (r"tokenizer_json$|hf_asset__", "tokenizer"),
)
"""How the keys of each begin. The first that fits counts."""

FP8: Final = ("F8_E4M3", "F8_E5M2")
SECTIONS: Final = frozenset({"transformer", "vae", "audio_vae", "vocoder", "duration_head"})
"""Of the configuration in a file's header."""
SCALES: Final = re.compile(r"(.*\.weight)_scale|(.*\.)input_scale")


@dataclass(frozen=True)
class Held:
    """The weights of one group, in the one file that has them."""

    group: Group
    file: WeightsFile
    keys: tuple[str, ...]
    """Without those of scales."""
    config: Section
    """What the file says about all its groups."""

    @property
    def tensors(self) -> Mapping[str, Stored]:
        return self.file.tensors

    @property
    def fp8_weights(self) -> list[str]:
        """Weights in the one float8 format tensor cores multiply."""
        return [key for key in self.keys if self.tensors[key].dtype == FP8[0] and key.endswith(".weight")]

    def shapes(self, key: str) -> Tensor:
        """A tensor of a key's shape that has no memory."""
        return self.tensors[key].on_meta()

    def dequantised(self, read: Read) -> Read:
        """Reads float8 as the float32 numbers it stands for, and the rest as it is."""

        def get(key: str) -> Tensor:
            tensor = read(key)
            if self.tensors[key].dtype not in FP8:
                return tensor
            scale = f"{key}_scale"
            return tensor.float() * read(scale).float() if scale in self.tensors else tensor.float()

        return get


def sort(file: WeightsFile) -> list[Held]:
    """All groups a file has weights of.

    Raises:
        NotReady: there are weights of none, or a kind of quantisation that is not known.
    """
    scales = {key for key in file.tensors if is_scale(key, file.tensors)}
    layers = file.json("_quantization_metadata").get("layers", {})
    unknown = [name for name, layer in layers.items() if layer.get("format") != "float8_e4m3fn"]
    refuse(file.name, "is quantised in a way this server does not understand", unknown)
    refuse(
        file.name,
        "has several scales for one weight, which this server does not understand",
        [key for key in scales if file.tensors[key].numel != 1],
    )
    config = Section(file.name, "config", file.json("config"))
    vae = config.values.get("vae")
    is_diffusion_vae = isinstance(vae, dict) and vae.get("_class_name") == DIFFUSION
    found: dict[Group, list[str]] = {}
    strangers = []
    for key in file.tensors.keys() - scales:
        group = next((group for pattern, group in GROUPS if re.match(pattern, key)), None)
        if group is None:
            strangers.append(key)
        elif group == "vae" and is_diffusion_vae:
            found.setdefault("diffusion_vae", []).append(key)
        else:
            found.setdefault(group, []).append(key)
    refuse(file.name, UNKNOWN, sorted(strangers))
    return [Held(group, file, tuple(sorted(keys)), config) for group, keys in found.items()]


def is_of_ltx(file: WeightsFile) -> bool:
    """Whether a file's header says that it belongs to an LTX-2: other models' files name their weights alike."""
    if {"model_version", "gemma_config", "gemma_source_checkpoint"} & file.metadata.keys():
        return True
    return bool(SECTIONS & file.json("config").keys())


def is_scale(key: str, tensors: Mapping[str, Stored]) -> bool:
    """Whether a key is the scale of a float8 weight, or of what is multiplied with one."""
    if not (match := SCALES.fullmatch(key)):
        return False
    weight = match[1] or f"{match[2]}weight"
    return weight in tensors and tensors[weight].dtype in FP8


def generation_of_file(file: WeightsFile) -> Generation | None:
    """Which LTX-2 a file is of: what it says, or else what its transformer is like; None when it says neither.

    Raises:
        NotReady: it is of a version this server does not know.
    """
    version = file.metadata.get("model_version", "")
    for generation in ("2.0", "2.3", "2.5"):
        if re.match(rf"{re.escape(generation)}(\.|$)", version):
            return generation
    if re.match(r"\d+\.\d", version):
        raise NotReady(f"{file.name} is of LTX-{version}, which this server does not know")
    transformer = file.json("config").get("transformer")
    if not isinstance(transformer, dict) or "rope_type" not in transformer:
        return None
    if transformer.get("use_keyframes_abs_pos_embedding"):
        return "2.5"
    return "2.3" if transformer.get("caption_proj_before_connector") else "2.0"
