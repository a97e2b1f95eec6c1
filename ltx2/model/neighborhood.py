"""Neighbourhood attention for the diffusion decoder of LTX-2.5, on any device, in bounded memory.

Every query attends to the window of ``kernel_size`` cells around it; at the border of the grid the window
is shifted inwards, so that it is always whole (NATTEN's definition). diffusers' portable path describes the
windows by one mask over all queries and keys, which at 768x512 would need more memory than any GPU has.
Here the grid is walked in tiles: the windows of a tile's queries lie in one box, and only the box is looked at.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

LARGEST_TILE = (4, 8, 8)
"""Queries looked at together, in frames, rows and columns: fewer where the windows are small."""
TILES_AT_ONCE = 64
"""Boxes of one row of tiles gathered together: some hundred megabytes at the decoder's widths."""


@dataclass(frozen=True)
class _Axis:
    """How one axis of a grid is walked."""

    starts: tuple[int, ...]
    """The first query of each tile. The last tile lies back over its neighbour rather than being shorter."""
    size: int
    """Queries of a tile."""
    boxes: tuple[int, ...]
    """The first key of each tile's box."""
    reach: int
    """Keys of a box."""
    masks: Tensor
    """``[tiles, size, reach]`` bool: which keys of the box are in a query's window."""


@cache
def _axis(length: int, kernel: int, tile: int, device: torch.device) -> _Axis:
    size = min(tile, length)
    starts = [*range(0, length - size, size), length - size]
    reach = min(size + kernel - 1, length)
    boxes = [min(max(start - kernel // 2, 0), length - reach) for start in starts]
    query = torch.tensor(starts)[:, None] + torch.arange(size)
    window = (query - kernel // 2).clamp(0, length - kernel)
    key = torch.tensor(boxes)[:, None] + torch.arange(reach)
    offset = key[:, None, :] - window[:, :, None]
    masks = (offset >= 0) & (offset < kernel)
    return _Axis(tuple(starts), size, tuple(boxes), reach, masks.to(device))


def neighborhood_attention(query: Tensor, key: Tensor, value: Tensor, kernel_size: tuple[int, int, int]) -> Tensor:
    """Attend within shifted windows of a grid.

    Args:
        query, key, value: ``[B, T, H, W, heads, d]``; the queries already scaled.
        kernel_size: frames, rows and columns of the window, none larger than the grid.

    Returns:
        ``[B, T, H, W, heads, d]``
    """
    batch, *grid = query.shape[:4]
    tile = [min(kernel + 1, largest) for kernel, largest in zip(kernel_size, LARGEST_TILE, strict=True)]
    axes = [_axis(*sizes, query.device) for sizes in zip(grid, kernel_size, tile, strict=True)]
    frames, rows, columns = axes
    result = torch.empty_like(query)
    for t, h in product(range(len(frames.starts)), range(len(rows.starts))):
        queries = [slice(axis.starts[at], axis.starts[at] + axis.size) for axis, at in ((frames, t), (rows, h))]
        boxes = [slice(axis.boxes[at], axis.boxes[at] + axis.reach) for axis, at in ((frames, t), (rows, h))]
        keys, values = key[:, boxes[0], boxes[1]], value[:, boxes[0], boxes[1]]
        seen = frames.masks[t][:, None, :, None] & rows.masks[h][None, :, None, :]
        for first in range(0, len(columns.starts), TILES_AT_ONCE):
            some = range(first, min(first + TILES_AT_ONCE, len(columns.starts)))

            def gather(tensor: Tensor, begins: tuple[int, ...], length: int, tiles: range = some) -> Tensor:
                cut = torch.stack([tensor[:, :, :, begins[w] : begins[w] + length] for w in tiles], dim=1)
                return cut.flatten(0, 1).flatten(1, 3).transpose(1, 2)

            # [tiles, size, reach] of each axis to [tiles, 1, queries, keys]
            mask = seen[None, :, :, None, :, :, None] & columns.masks[first : some.stop][:, None, None, :, None, None]
            mask = mask.flatten(4, 6).flatten(1, 3)[:, None]
            attended = scaled_dot_product_attention(
                gather(query[:, queries[0], queries[1]], columns.starts, columns.size),
                gather(keys, columns.boxes, columns.reach),
                gather(values, columns.boxes, columns.reach),
                attn_mask=mask.repeat(batch, 1, 1, 1) if batch > 1 else mask,
                scale=1.0,
            )
            sizes = (batch, len(some), frames.size, rows.size, columns.size)
            tiles = attended.transpose(1, 2).reshape(*sizes, *query.shape[4:])
            for number, w in enumerate(some):
                there = slice(columns.starts[w], columns.starts[w] + columns.size)
                result[:, queries[0], queries[1], there] = tiles[:, number]
    return result


class NeighborhoodProcessor:
    """An attention processor for diffusers' ``LTX2VideoVaeNeighborhoodAttention``."""

    def __call__(self, attn: Any, hidden_states: Tensor, _block_mask: None = None) -> Tensor:
        """Attend over ``[B, T, H, W, C]``; there is never a block mask, since none is asked for."""
        query, key, value = attn.project_qkv(hidden_states)
        attended: Tensor = attn.to_out[0](neighborhood_attention(query, key, value, attn.kernel_size).flatten(-2))
        return attended
