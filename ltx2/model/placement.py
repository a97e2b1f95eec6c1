"""Where the model lives and in which precision."""

import psutil
import torch

from ltx2.errors import NotReady
from ltx2.settings import Settings


def choose_device(settings: Settings) -> torch.device:
    """The device asked for; ``auto`` takes a GPU if there is one.

    Raises:
        NotReady: it is not there.
    """
    if settings.device != "auto":
        device = torch.device(settings.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise NotReady(
                f"LTX2_DEVICE is {settings.device}, but torch sees {torch.cuda.device_count()} CUDA devices",
                hint="set LTX2_DEVICE=auto, or install a torch built for your GPU",
            )
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """The dtype of all modules but the vocoder, which stays in float32."""
    if settings.precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def budget_bytes(device: torch.device) -> int:
    """All the memory the device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
