"""Prompts that the model writes out first."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.utils import I2V_DEFAULT_SYSTEM_PROMPT
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file
from saved_models import lay_out, save, save_gemma_3
from small_clips import MEDIA, first, make
from transformers import Gemma3Processor

from ltx2.engine import CancelFlag, Clip
from ltx2.errors import Canceled, InvalidRequest, NotReady
from ltx2.media.images import decode_image, with_long_side
from ltx2.model.checkpoint import load_components
from ltx2.model.components import Components
from ltx2.model.enhance import LONG_SIDE, enhance, legal_prompt, question
from ltx2.model.enhancers import enhancer_beside, writing_text_encoder
from ltx2.model.folder import DiffusersFolder
from ltx2.model.inputs import Inputs
from ltx2.model.local import LocalEngine
from ltx2.model.original import OriginalFiles
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.prompts import encode_prompts
from ltx2.model.runner import Runner
from ltx2.model.source import Enhancer
from ltx2.model.tiny import SPECIAL_TOKENS, WRITTEN_TOKENS, TinySource, build_tiny
from ltx2.payload import view
from ltx2.request import Keyframe, Output, Prompt
from ltx2.settings import Settings
from ltx2.studio.direct import Direct

Tiny = Callable[[str], Components]
Find = Callable[[str], Path]
MANY = 10_000
LOSSLESS = Output(crf=0)


def png(colour: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (60, 40), colour).save(file, "PNG")
    return file.getvalue()


INPUTS = Inputs({"black": png("black"), "white": png("white")}, max_image_megapixels=1, max_audio_seconds=10)


def written(components: Components, **fields: Any) -> str | None:
    return enhance(components, make(enhance_prompt=True, **fields), INPUTS, MANY)


@pytest.fixture(scope="module")
def text(tiny: Tiny) -> str:
    """What the miniature of 2.0 writes of a prompt with seed 3."""
    made = written(tiny("tiny"))
    assert made is not None
    return made


def test_the_seed_decides_and_no_other_randomness_and_no_cache_is_touched(tiny: Tiny, text: str) -> None:
    components = replace(tiny("tiny"), prompt_cache=PromptCache(2**20))
    with torch.inference_mode():
        encode_prompts(components, "a lighthouse", "x")
    torch.manual_seed(1)
    state, kept = torch.get_rng_state(), components.prompt_cache.nbytes
    calls: list[object] = []
    hook = components.connectors.register_forward_hook(lambda *_: calls.append(1))
    try:
        other = written(components, seed=4)
        assert written(components) == text
        assert torch.equal(torch.get_rng_state(), state)
        assert components.prompt_cache.nbytes == kept > 0
        with torch.inference_mode():
            encode_prompts(components, "a lighthouse", "x")  # both are still known
        assert calls == []
    finally:
        hook.remove()
    assert other not in (None, text)
    TypeAdapter(Prompt).validate_python(text)


def test_the_image_of_the_first_frame_is_looked_at_and_no_other(tiny: Tiny, text: str) -> None:
    components = tiny("tiny")
    seen = {written(components, keyframes=first(name)) for name in ("black", "white")}
    assert len(seen | {text}) == 3
    not_first = (*first("black", strength=0), Keyframe(image="white", frame="last"))
    assert written(components, keyframes=not_first) == text


def test_the_words_of_the_template_are_not_the_callers(tiny: Tiny) -> None:
    # each of them would make the model wait for an image that there is not
    components, image = tiny("tiny"), np.zeros((4, 4, 3), np.uint8)
    sent = f"a {''.join(SPECIAL_TOKENS)} <<image>image> b"
    asked = question(components.text_encoder, components.enhancer, is_gemma_4=False, prompt=sent, image=image)
    tokens = asked["input_ids"][0].tolist()
    assert [tokens.count(token) for token in range(7)] == [0, 0, 1, 0, 4, 1, 1]


def test_gemma_3_is_asked_as_its_processor_would(tiny: Tiny) -> None:
    components = tiny("tiny-2.3")
    enhancer = components.enhancer
    image = with_long_side(decode_image(MEDIA["a"], field="a", max_megapixels=1), LONG_SIDE)
    assert max(image.shape) == 896
    asked = question(components.text_encoder, enhancer, is_gemma_4=False, prompt="a cat", image=image)
    processor = Gemma3Processor(enhancer.image_processor, enhancer.tokenizer, image_seq_length=4)
    said = [{"type": "image"}, {"type": "text", "text": "User Raw Input Prompt: a cat."}]
    messages = [{"role": "system", "content": I2V_DEFAULT_SYSTEM_PROMPT}, {"role": "user", "content": said}]
    text = enhancer.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    theirs = processor(text=text, images=image, return_tensors="pt")
    assert asked.keys() == theirs.keys()
    for name, tensor in asked.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        ("  “A cat” — it's asleep\n", "A cat\" - it's asleep"),
        ("**A cat\x00 and\x1b a\tdog\x7f", "A cat and a\tdog"),
        ("\x00\x01 \x02", None),
        ("", None),
        ("abcdefgh   ijklmnop", "abcdefgh"),
    ],
)
def test_what_was_written_becomes_a_legal_prompt(said: str, prompt: str | None) -> None:
    assert legal_prompt(said, 11 if said.startswith("abc") else 100) == prompt


def test_where_nothing_legal_was_written_the_callers_own_prompt_is_used(tmp_path: Path) -> None:
    components = build_tiny("tiny", torch.device("cpu"), torch.float32)
    components.text_encoder.generation_config.suppress_tokens = list(range(2, len(SPECIAL_TOKENS) + 256))
    runner = Runner(components, Settings(data_dir=tmp_path))
    request = make(enhance_prompt=True, width=64, num_frames=1)
    made = runner.run(request, {}, tmp_path / "clip.mp4", lambda *_: None, lambda: False)
    assert made.prompt == "x"
    assert "The model wrote nothing that can be a prompt, so yours was used as it is." in made.warnings


def test_a_cancel_is_seen_between_two_tokens(tiny: Tiny) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Canceled):
        enhance(tiny("tiny"), make(), INPUTS, MANY, cancelled)
    assert len(asked) == 3 < WRITTEN_TOKENS


def test_it_is_the_same_where_the_text_encoder_comes_and_goes(text: str) -> None:
    components = load_components(Settings(model="tiny", offload="model"))
    assert written(components) == text
    assert components.residency is not None
    assert dict(components.residency.visits) == {"text_encoder": 1}
    assert components.residency.where("text_encoder") == "host"


def shown_by(clip: Clip) -> list[np.ndarray]:
    with av.open(clip.path) as container:
        return [frame.to_ndarray() for frame in container.decode()]


def test_the_answer_has_the_text_and_that_text_makes_the_same_clip(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu", max_prompt_chars=30)
    engine = LocalEngine(settings)
    running = Direct(settings, engine)

    async def answer(**fields: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        async with running.run(make(width=64, num_frames=9, output=LOSSLESS, **fields), {}) as (request, clip):
            return view(request, clip.facts), shown_by(clip)

    async def answers() -> Iterator[tuple[dict[str, Any], list[np.ndarray]]]:
        one = await answer(enhance_prompt=True)
        return iter([one, await answer(enhance_prompt=True), await answer(prompt=one[0]["prompt"]), await answer()])

    (facts, clip), again, verbatim, plain = asyncio.run(answers())
    running.close()
    assert 0 < len(facts["prompt"]) <= 30
    assert facts["prompt"] == again[0]["prompt"] == verbatim[0]["prompt"] != plain[0]["prompt"] == "x"
    for frame, one, other in zip(clip, again[1], verbatim[1], strict=True):
        assert np.array_equal(frame, one)
        assert np.array_equal(frame, other)
    assert any(not np.array_equal(frame, other) for frame, other in zip(clip, plain[1], strict=True))


def test_2_5_asks_a_model_of_its_own_which_goes_again(tiny: Tiny, tmp_path: Path) -> None:
    components = tiny("tiny-2.5")
    enhancer = components.enhancer
    assert enhancer.load is not None
    loaded: list[Any] = []

    def load(dtype: torch.dtype) -> Any:
        loaded.append(enhancer.load(dtype))
        return loaded[-1]

    watched = replace(components, open_enhancer=lambda: replace(enhancer, load=load))
    seen = written(watched, keyframes=first("white"))
    assert seen != written(watched)
    assert {weight.device.type for model in loaded for weight in model.parameters()} == {"meta"}
    # as a folder: what was written there is read again, and writes the same
    folder = save(components, tmp_path / "ltx-2.5")
    with pytest.raises(NotReady, match="has no prompt enhancer"):
        DiffusersFolder(folder).enhancer()
    put_enhancer(enhancer, folder)
    opened = DiffusersFolder(folder)
    assert written(replace(components, open_enhancer=opened.enhancer), keyframes=first("white")) == seen
    stored = load_file(folder / "prompt_enhancer" / "model.safetensors")
    assert opened.enhancer().parameters == sum(weight.numel() for weight in stored.values())


def put_enhancer(enhancer: Enhancer, folder: Path) -> None:
    assert enhancer.load is not None
    assert enhancer.image_processor is not None
    enhancer.load(torch.float32).save_pretrained(folder / "prompt_enhancer")
    enhancer.tokenizer.save_pretrained(folder / "processor")
    enhancer.image_processor.save_pretrained(folder / "processor")


def refusal(components: Components, open_enhancer: Callable[[], Enhancer], **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        written(replace(components, open_enhancer=open_enhancer), **fields)
    assert refused.value.field == "enhance_prompt"
    return refused.value


def test_what_is_missing_is_said_to_the_caller_and_what_to_do_to_the_operator(tiny: Tiny, tmp_path: Path) -> None:
    components, enhancer = tiny("tiny"), TinySource("tiny").enhancer()
    absent = refusal(components, lambda: enhancer_beside(tmp_path / "model"))
    assert absent.message == "the model 'model' has no prompt enhancer"
    assert "prompt_enhancer and processor" in str(absent.hint)

    enhancer.tokenizer.save_pretrained(tmp_path / "with")
    plain = TinySource("tiny").enhancer().tokenizer
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "without")
    places = [tmp_path / "without", tmp_path / "nowhere"]
    silent = refusal(components, lambda: writing_text_encoder(places, "the model"))
    assert (
        silent.message == "the model has no tokenizer with a chat template, without which it cannot be asked to write"
    )

    # the next place has one; but nobody there can look at an image
    blind = writing_text_encoder([*places, tmp_path / "with"], "the model")
    assert written(replace(components, open_enhancer=lambda: blind), seed=3) is not None
    assert "no image processor" in refusal(components, lambda: blind, keyframes=first("white")).message

    enhancer.image_processor.save_pretrained(tmp_path / "images")
    blank = writing_text_encoder([*places, tmp_path / "with", tmp_path / "images"], "the model")
    blank.tokenizer.chat_template = "{{ messages[0].content }}"
    assert "no place for an image" in refusal(components, lambda: blank, keyframes=first("white")).message


def test_beside_original_files_it_is_found_as_well(tiny: Tiny, checkpoints: Find, tmp_path: Path) -> None:
    gemma = save_gemma_3(tmp_path / "gemma")
    files = OriginalFiles([checkpoints("ltx-2.0-tiny-fp8-plain.safetensors")], gemma)
    assert files.enhancer().tokenizer.chat_template
    assert files.enhancer().load is None
    name = "ltx-2.5-tiny-transformer.safetensors"
    folder = lay_out(tmp_path / "ltx-2.5", {name: checkpoints(name)})
    files = OriginalFiles([folder / name])
    with pytest.raises(NotReady, match=r"'ltx-2\.5' has no prompt enhancer"):
        files.enhancer()
    put_enhancer(tiny("tiny-2.5").enhancer, folder)
    assert files.enhancer().load is not None


def test_an_enhancer_of_another_kind_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    tiny("tiny").text_encoder.save_pretrained(tmp_path / "prompt_enhancer")
    with pytest.raises(NotReady, match="is Gemma3ForConditionalGeneration, not Gemma4ForConditionalGeneration"):
        enhancer_beside(tmp_path)


def test_a_cancelled_job_ends_while_it_writes(tmp_path: Path) -> None:
    engine, cancel, phases = LocalEngine(Settings(data_dir=tmp_path, device="cpu")), CancelFlag(), []

    def progress(at: Any) -> None:
        phases.append(at.phase)
        if at.phase == "encoding":
            cancel.set()

    with pytest.raises(Canceled):
        engine.generate(make(enhance_prompt=True), {}, progress, cancel)
    assert phases == ["loading", "encoding"]
