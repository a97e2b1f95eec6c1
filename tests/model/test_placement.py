"""What is decided for the cards there are, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ltx2.errors import NotReady
from ltx2.geometry import Grid
from ltx2.model.memory import ACTIVATIONS, MINIATURE, PARAMETERS, typical_grid
from ltx2.model.placement import (
    Card,
    Placement,
    name_of,
    plan_placement,
    planned_shape,
    read_card,
)
from ltx2.settings import Settings

GIB, GB = 2**30, 1e9
CARDS = {
    name: Card("cuda", int(gib * GIB), int((gib - 0.5) * GIB), fp8_matmul=True)
    for name, gib in {"12": 11.6, "24": 23.5, "48": 44.4, "80": 79.1, "141": 139.8}.items()
}
"""An RTX 4070, an RTX 4090, an L40S, an H100 and an H200 as torch sees them, and half a GiB of each taken: that leaves
10.9, 23.2, 44.7, 80.5 and 143.1 GB to plan with, after 0.5 GB and 4 % in reserve."""

# LTX-2.3, in GB of 10^9 bytes.
#                    bf16   float8
#   transformer      38.0   20.2    18.99 B parameters, 93 % of them in one byte
#   text encoder     24.4   13.6    12.19 B, 88 %
#   connectors        6.3
#   vae, upsampler    1.5 + 1.0
#   audio             0.1 + 0.5     the vocoder in float32
#   all              71.8   43.3
#   without prompts' 41.1   23.3    the transformer and 3.1: what stays with offload text-encoder
#
# beside the weights          288x512x49  768x512x121  1280x704x121  1920x1088x121
#   text encoder, connectors  0.8, 1.8    at any size
#   transformer               0.5         2.5          5.6           12.9             float8: + 0.0 to 1.1
#   VAE in one piece          0.8         5.0          11.5          26.6
#   VAE in tiles              0.8         3.5          3.6           5.3
#
# 141: everything fits with everything: at most 71.8 + 26.6 = 98.4.
#  80: 71.8 + 5.0 = 76.8 fits, 71.8 + 11.5 = 83.3 does not. Without the prompts' parts 41.1 + 24.4 + 0.8 = 66.3 to
#      encode and 41.1 + 26.6 = 67.7 to decode. Float8 43.3 + 26.6 = 69.9.
#  48: bf16 41.1 + 24.4 is too much, 38.0 + 5.6 = 43.6 is not, 38.0 + 12.9 is. Float8 43.3 + 1.8 = 45.1 is just too
#      much; 23.3 + 13.6 + 0.8 = 37.7 to encode, 23.3 + 11.5 = 34.8 to decode; 23.3 + 26.6 only in tiles.
#  24: float8 20.2 + 2.5 = 22.7 (and 0.2) fits, 20.2 + 5.6 does not. Streamed, two blocks and what is around them
#      have 2.4 (of the text encoder 3.9): 2.4 + 12.9 = 15.3 to denoise, 1.5 + 11.5 = 13.0 to decode, 1.5 + 26.6 tiled.
#  12: 6.3 + 1.8 = 8.1 for the connectors, 2.4 + 5.6 = 8.0 to denoise, 1.5 + 3.6 to decode; 2.4 + 12.9 is too much.
TABLE = """
       clip           auto               bf16            fp8             fp8-storage
 12    288x512x49     fp8 group          group           group           group
 12    768x512x121    fp8 group          group           group           group
 12    1280x704x121   fp8 group*         group*          group*          group*
 12    1920x1088x121  refused            refused         refused         refused
 24    288x512x49     fp8 model          group           model           model
 24    768x512x121    fp8 model          group           model           model
 24    1280x704x121   fp8 group          group           group           group
 24    1920x1088x121  fp8 group*         group*          group*          group*
 48    288x512x49     fp8 text-encoder   model           text-encoder    text-encoder
 48    768x512x121    fp8 text-encoder   model           text-encoder    text-encoder
 48    1280x704x121   fp8 text-encoder   model           text-encoder    text-encoder
 48    1920x1088x121  fp8 text-encoder*  group           text-encoder*   text-encoder*
 80    288x512x49     bf16 none          none            none            none
 80    768x512x121    bf16 none          none            none            none
 80    1280x704x121   bf16 text-encoder  text-encoder    none            none
 80    1920x1088x121  bf16 text-encoder  text-encoder    none            none
 141   288x512x49     bf16 none          none            none            none
 141   768x512x121    bf16 none          none            none            none
 141   1280x704x121   bf16 none          none            none            none
 141   1920x1088x121  bf16 none          none            none            none
"""
"""A star: decoded in tiles."""


def rows() -> list[tuple[str, str, str, str]]:
    found = []
    for line in TABLE.strip().splitlines()[1:]:
        card, clip, *cells = line.split()
        first = [] if cells[0] == "refused" else [cells.pop(0)]
        auto = " ".join([*first, cells.pop(0)])
        for precision, cell in zip(("bf16", "fp8", "fp8-storage"), cells, strict=True):
            found.append((card, clip, precision, cell if cell == "refused" else f"{precision} {cell}"))
        found.append((card, clip, "auto", auto))
    return found


def shape(clip: str) -> Grid:
    return planned_shape(Settings(plan_for=clip))


def plan(
    card: Card, clip: str = "1280x704x121", precision: Any = "auto", offload: Any = "auto", **more: Any
) -> Placement:
    generation = more.pop("generation", "2.3")
    sizes = more.pop("sizes", PARAMETERS[generation])
    return plan_placement(card, sizes, precision, offload, shape(clip), ACTIVATIONS[generation], **more)


def outcome(placement: Placement) -> str:
    return f"{placement.precision} {placement.offload}" + "*" * placement.tiled


@pytest.mark.parametrize(("card", "clip", "precision", "expected"), rows())
def test_the_table(card: str, clip: str, precision: str, expected: str) -> None:
    if expected == "refused":
        with pytest.raises(NotReady):
            plan(CARDS[card], clip, precision)
        return
    placement = plan(CARDS[card], clip, precision)
    assert outcome(placement) == expected
    assert placement.peak_bytes == max(placement.peaks) <= CARDS[card].available_bytes
    assert placement.tiled_at(*map(int, clip.split("x"))) == placement.tiled


def test_the_arithmetic_in_the_comments() -> None:
    everything = plan(CARDS["141"], precision="bf16")
    assert everything.resident_bytes / GB == pytest.approx(71.8, abs=0.05)
    assert everything.host_bytes == 0
    assert [peak / GB for peak in everything.peaks] == pytest.approx([71.8 + 1.75, 71.8 + 5.6, 71.8 + 11.5], abs=0.1)

    without = plan(CARDS["80"], precision="bf16")
    assert without.resident_bytes / GB == pytest.approx(41.1, abs=0.1)
    assert without.host_bytes / GB == pytest.approx(1.1 * (24.4 + 6.3), abs=0.1)
    assert [peak / GB for peak in without.peaks] == pytest.approx([66.3, 41.1 + 5.6, 41.1 + 11.5], abs=0.1)

    float8 = plan(CARDS["24"], "768x512x121")
    assert float8.resident_bytes == 0
    assert float8.host_bytes / GB == pytest.approx(1.1 * 43.3, abs=0.1)
    assert [peak / GB for peak in float8.peaks] == pytest.approx([13.6 + 0.8, 20.2 + 2.7, 1.5 + 5.0], abs=0.1)

    streamed = plan(CARDS["12"])
    assert [peak / GB for peak in streamed.peaks] == pytest.approx([8.1, 2.4 + 6.1, 1.5 + 3.6], abs=0.1)


def test_two_generations_more() -> None:
    # 2.0 has 3.5 GB of connectors less and 1.0 of VAE more: 40.4 + 2.6 = 43.0 of 44.7
    assert outcome(plan(CARDS["48"], "288x512x49", generation="2.0")) == "fp8 none"
    # 2.5's diffusion decoder takes 93.3 for a whole 1080p clip, a fifth of that in tiles
    assert outcome(plan(CARDS["141"], "1920x1088x121", generation="2.5")) == "bf16 text-encoder"
    assert outcome(plan(CARDS["80"], "1920x1088x121", generation="2.5")) == "bf16 text-encoder*"
    assert outcome(plan(CARDS["24"], generation="2.5")) == "fp8 group*"


def test_tiles_are_chosen_for_each_request_by_the_room_there_is() -> None:
    placement = plan(CARDS["80"])
    assert [placement.tiled_at(1920, 1088, frames) for frames in (121, 177, 241)] == [False, False, True]
    assert plan(CARDS["141"]).tiled_at(1920, 1088, 241) is False


def test_a_checkpoint_in_float8_stays_so_unless_asked() -> None:
    assert plan(CARDS["141"], stored_fp8=True).precision == "fp8"
    assert plan(CARDS["141"], precision="bf16", stored_fp8=True).precision == "bf16"
    assert plan(CARDS["141"], precision="fp32", offload="model", stored_fp8=True).precision == "fp32"
    assert plan(CARDS["141"], precision="fp8-storage").precision == "fp8-storage"


def test_a_card_that_cannot_multiply_float8_only_stores_it() -> None:
    ampere = replace(CARDS["48"], fp8_matmul=False)
    assert outcome(plan(ampere)) == outcome(plan(ampere, precision="fp8")) == "fp8-storage text-encoder"


def test_an_offload_that_is_asked_for_is_taken_with_tiles_if_need_be() -> None:
    assert outcome(plan(CARDS["141"], offload="group")) == "bf16 group"
    assert outcome(plan(CARDS["48"], offload="model")) == "bf16 model"
    assert outcome(plan(CARDS["80"], offload="none")) == "bf16 none*"


def test_loras_take_room_where_the_transformer_is() -> None:
    # 20.2 + 2.7 + 7.7 is more than there is
    assert outcome(plan(CARDS["24"], "768x512x121", lora_parameters=3_850_000_000)) == "fp8 group"
    placement, bare = plan(CARDS["141"], lora_parameters=3_850_000_000), plan(CARDS["141"])
    assert [more - less for more, less in zip(placement.peaks, bare.peaks, strict=True)] == [7_700_000_000] * 3


def test_a_refusal_says_what_was_tried_and_what_would_help() -> None:
    with pytest.raises(NotReady) as caught:
        plan(CARDS["12"], "1920x1088x121")
    message = str(caught.value)
    assert "does not fit for a clip of 1920x1088x121: 10.9 GB of 12.5 GB can be used" in message
    for tried in ("bf16 with offload text-encoder needs 66.2 GB to encode", "fp8 with offload group needs 16.5 GB to"):
        assert tried in message
    assert caught.value.hint == "set LTX2_PLAN_FOR to a smaller clip"

    with pytest.raises(NotReady) as caught:
        plan(CARDS["24"], precision="bf16", offload="none")
    assert caught.value.hint == "set LTX2_OFFLOAD=group or LTX2_PLAN_FOR to a smaller clip"

    with pytest.raises(NotReady) as caught:
        plan(CARDS["24"], "288x512x49", precision="bf16", offload="model")
    assert caught.value.hint == "set LTX2_PRECISION=fp8 or LTX2_OFFLOAD=group or LTX2_PLAN_FOR to a smaller clip"


def test_a_plan_is_described_in_a_line() -> None:
    text = plan(CARDS["12"]).describe()
    assert text == (
        "fp8, offload group: 0.0 GB stay on the device, 47.6 GB in host memory; predicted peak at 1280x704x121 "
        "8.5 of 10.9 GB (encode 8.1, denoise 8.5, decode 5.0 in tiles)"
    )


def test_on_a_cpu_nothing_moves_and_everything_is_float32() -> None:
    large, small = Card("cpu", 256 * GIB, 250 * GIB), Card("cpu", 64 * GIB, 60 * GIB)
    placement = plan(large)
    assert outcome(placement) == "fp32 none"
    assert placement.resident_bytes / GB == pytest.approx(2 * 71.8, abs=0.6)  # the vocoder is no larger
    with pytest.raises(NotReady, match="fp32 with offload none needs") as caught:
        plan(small)
    assert "OFFLOAD" not in str(caught.value)  # there is one memory only
    assert outcome(plan(large, stored_fp8=True)) == "fp8-storage none"
    # a copy at work beside the one at home
    moved = plan(large, precision="bf16", offload="model")
    assert moved.peak_bytes > moved.host_bytes + moved.weight_bytes("transformer")


def test_the_embedded_models_fit_anywhere() -> None:
    sizes = dict.fromkeys(PARAMETERS["2.5"], 100_000)
    shape_ = typical_grid(288, 512, 121)
    card = Card("cpu", 4 * GIB, 3 * GIB)
    assert outcome(plan_placement(card, sizes, "auto", "auto", shape_, MINIATURE)) == "fp32 none"
    assert not plan_placement(card, sizes, "auto", "auto", shape_, MINIATURE).tiled_at(64, 64, 9)


def test_this_machine() -> None:
    card = read_card(torch.device("cpu"))
    assert card.kind == "cpu"
    assert 0 < card.free_bytes < card.total_bytes
    assert card.available_bytes < card.free_bytes


def test_the_dtype_of_what_is_not_float8() -> None:
    for precision, on_cpu, on_cuda in (
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp8", torch.float32, torch.bfloat16),
        ("fp8-storage", torch.float32, torch.bfloat16),
        ("fp32", torch.float32, torch.float32),
    ):
        shape = typical_grid(64, 64, 9)
        placements = [
            Placement(precision, "none", Card(kind, 1, 1), {}, shape, MINIATURE)  # type: ignore[arg-type]
            for kind in ("cpu", "cuda")
        ]
        assert [placement.dtype for placement in placements] == [on_cpu, on_cuda]


def test_what_waits_beside_a_gpu_must_fit_into_host_memory() -> None:
    # 20.2 + 13.6 + 6.3 + ... in fp8: 43.3, and a tenth more in pinned memory
    small, large = (replace(CARDS["12"], host_free_bytes=gb * 10**9) for gb in (47, 48))
    assert outcome(plan(large, "768x512x121")) == "fp8 group"
    with pytest.raises(NotReady, match=r"47\.0 GB of host memory are free") as caught:
        plan(small, "768x512x121")
    assert "47.6 GB of host memory" in caught.value.message
    # where nothing waits, none is needed
    assert outcome(plan(replace(CARDS["141"], host_free_bytes=0))) == "bf16 none"


def test_the_planned_clip_is_a_setting() -> None:
    assert name_of(planned_shape(Settings())) == "1280x704x121"
    assert planned_shape(Settings(plan_for="500x300x50")).grid_width == 512
    for wrong in ("1280x704", "1280x704x0", "0x704x121", "1280 x 704 x 121", "axbxc"):
        with pytest.raises(ValueError, match="plan_for"):
            Settings(plan_for=wrong)


@pytest.mark.parametrize("shape", [(1280, 704, 121), (1920, 1088, 241), (768, 512, 122)])
def test_what_should_fit_needs_a_quarter_less_than_what_did_not(shape: tuple[int, int, int]) -> None:
    card = Card("cuda", 24 * 10**9, 24 * 10**9, fp8_matmul=True, host_free_bytes=10**12)
    placed = plan_placement(card, PARAMETERS["2.0"], "auto", "auto", typical_grid(768, 512, 121), ACTIVATIONS["2.0"])
    width, height, asked = shape
    frames = placed.fitting_frames(shape)

    def peak(*shape: int) -> int:
        return replace(placed, shape=typical_grid(*shape)).peak_bytes

    most = min(0.75 * peak(*shape) + 0.25 * peak(64, 64, 1), card.available_bytes)
    assert 0 < frames < asked
    assert frames % 8 == 1
    assert peak(width, height, frames) <= most
    assert frames + 8 >= asked or peak(width, height, frames + 8) > most
    assert placed.fitting_frames((width, height, 1)) == 0
    assert placed.should_fit((width // 2, height // 2, asked), shape) == (peak(width // 2, height // 2, asked) <= most)
