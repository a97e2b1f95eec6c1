"""The parts an LTX-2 is made of, by name."""

from typing import Any, Literal, get_args

Module = Any
"""An ``nn.Module`` of diffusers or transformers. They declare configuration and buffers at run time only,
so a type checker that took the class at its word would refuse every use of them."""

Part = Literal[
    "text_encoder",
    "connectors",
    "transformer",
    "vae",
    "audio_vae",
    "vocoder",
    "upsampler",
    "diffusion_decoder",
    "duration_head",
]
PARTS: tuple[Part, ...] = get_args(Part)
REQUIRED: tuple[Part, ...] = ("text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder")
"""The parts no generation works without; the others open up what they are for."""
