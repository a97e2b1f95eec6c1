import numpy as np
import pytest
import torch

from ltx2.model.decode import to_uint8_chunks


def test_bytes_are_those_of_the_usual_float_path() -> None:
    torch.manual_seed(0)
    video = torch.rand(1, 3, 11, 4, 6) * 3 - 1.5
    chunks = list(to_uint8_chunks(video, frames_per_chunk=4))
    assert [chunk.shape for chunk in chunks] == [(4, 4, 6, 3), (4, 4, 6, 3), (3, 4, 6, 3)]
    usual = ((video / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 3, 0).numpy() * 255).round().astype(np.uint8)
    ours = np.concatenate(chunks)
    assert ours.dtype == np.uint8
    # the two round halves differently after other operations: no byte is off by more than one, hardly any at all
    assert np.abs(ours.astype(int) - usual).max() <= 1
    assert (ours != usual).mean() < 1e-2


@pytest.mark.parametrize(("value", "byte"), [(-1.0, 0), (-2.0, 0), (1.0, 255), (5.0, 255), (0.0, 128), (-0.5, 64)])
def test_values(value: float, byte: int) -> None:
    (chunk,) = to_uint8_chunks(torch.full((1, 3, 1, 2, 2), value))
    assert set(chunk.ravel().tolist()) == {byte}


def test_bfloat16_is_rounded_in_float32() -> None:
    video = torch.linspace(-1, 1, 300).to(torch.bfloat16).view(1, 3, 1, 10, 10)
    (chunk,) = to_uint8_chunks(video)
    exact = (video.double() * 127.5 + 127.5).round()[0, :, 0].permute(1, 2, 0)
    assert np.array_equal(chunk[0], exact.numpy().astype(np.uint8))


def test_the_clip_is_left_alone() -> None:
    video = torch.rand(1, 3, 2, 2, 2)
    before = video.clone()
    list(to_uint8_chunks(video))
    assert torch.equal(video, before)
