"""What is done about a second stage for which there is no room, and about memory that runs out."""

from dataclasses import replace

import pytest
import torch

from ltx2.errors import NotReady
from ltx2.model.checkpoint import find_checkpoint, load_components, place, wanted_parts
from ltx2.model.runner import Runner, is_out_of_memory
from ltx2.settings import Settings

CPU = torch.device("cpu")
HUGE = 10**13
"""Numbers of a LoRA that fits nowhere."""


def test_a_lora_without_room_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(model="tiny-dev")
    checkpoint = replace(find_checkpoint(settings), lora_parameters=HUGE)
    parts = wanted_parts(checkpoint.source, settings)
    with caplog.at_level("WARNING"):
        placed, placement = place(checkpoint, parts, CPU, settings)
    assert placed.make_lora is None
    assert placement.lora_bytes == 0
    assert "no second stage" in caplog.text
    assert "for a LoRA" in caplog.text


def test_a_lora_that_was_asked_for_is_not_left_out() -> None:
    settings = Settings(model="tiny-dev", distilled_lora="/a/lora.safetensors")
    checkpoint = replace(find_checkpoint(settings), lora_parameters=HUGE)
    with pytest.raises(NotReady, match="GB of it for a LoRA"):
        place(checkpoint, wanted_parts(checkpoint.source, settings), CPU, settings)


def test_a_lora_without_an_upsampler_is_of_no_use() -> None:
    settings = Settings(model="tiny-dev")
    checkpoint = replace(find_checkpoint(settings), lora_parameters=HUGE)
    parts = tuple(part for part in wanted_parts(checkpoint.source, settings) if part != "upsampler")
    placed, _ = place(checkpoint, parts, CPU, settings)
    assert placed.make_lora is None


def test_what_is_on_the_device_is_what_is_said_to_be() -> None:
    whole = Runner(load_components(Settings(model="tiny")), Settings())
    away = Runner(load_components(Settings(model="tiny", offload="text-encoder")), Settings())
    none = Runner(load_components(Settings(model="tiny", offload="model")), Settings())
    parts = whole.components.parts
    prompts = sum(
        tensor.nbytes
        for part in ("text_encoder", "connectors")
        for tensor in (*parts[part].parameters(), *parts[part].buffers())
    )
    assert whole.resident_bytes - away.resident_bytes == prompts
    assert none.resident_bytes == 0


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one
