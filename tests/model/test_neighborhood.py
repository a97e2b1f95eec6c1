"""Attention in tiles against diffusers' own, which sees the whole grid at once."""

import pytest
import torch
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoVaeNeighborhoodAttention

from ltx2.model.neighborhood import NeighborhoodProcessor, neighborhood_attention


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("grid", "kernel"),
    [
        ((5, 9, 13), (3, 3, 5)),  # tiles that do not divide the grid
        ((4, 7, 7), (3, 7, 7)),  # windows as large as the grid
        ((12, 12, 30), (11, 11, 11)),
        ((2, 4, 4), (2, 4, 2)),  # even windows
        ((1, 3, 3), (1, 3, 3)),
    ],
)
@torch.inference_mode()
def test_tiles_give_what_the_whole_grid_gives(grid: tuple[int, int, int], kernel: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    attention = LTX2VideoVaeNeighborhoodAttention(32, kernel, head_dim=16).eval()
    hidden_states = torch.randn(2, *grid, 32)
    stock = attention(hidden_states)
    attention.set_processor(NeighborhoodProcessor())
    assert float((attention(hidden_states) - stock).abs().max() / stock.abs().max()) < 1e-5


@torch.inference_mode()
def test_a_window_is_shifted_inwards_at_the_border() -> None:
    # equal scores: each result is the mean over the window
    value = torch.arange(6.0).view(1, 1, 1, 6, 1, 1)
    zero = torch.zeros_like(value)
    means = neighborhood_attention(zero, zero, value, (1, 1, 3)).flatten().tolist()
    assert means == pytest.approx([1, 1, 2, 3, 4, 4])


@torch.inference_mode()
def test_rows_longer_than_one_batch_of_tiles_are_walked_to_their_end() -> None:
    value = torch.randn(1, 1, 1, 1000, 1, 1)
    zero = torch.zeros_like(value)
    means = neighborhood_attention(zero, zero, value, (1, 1, 3)).flatten()
    assert torch.allclose(means[1:-1], value.flatten().unfold(0, 3, 1).mean(-1), atol=1e-6)
