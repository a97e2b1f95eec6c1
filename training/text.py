"""Tokenizer, text encoder and the connectors' start: reading what a caption tells, and writing captions out.

The text encoder is trained here and then stays; the connectors go on with the transformer.
"""

from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from training import captions
from training.captions import KEPT_BACK, QUESTIONS, Caption
from training.loop import RUNS, Run
from training.world import Scene

STEPS = 6000
TOKENS = 128
"""Of a prompt, padding included: as many as the connectors have registers."""
WIDTH = 128
LAYERS = 3
VOCABULARY = 1024
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<image>", "<boi>", "<eoi>")
IMAGE_TOKENS = {"image_token_index": 4, "boi_token_index": 5, "eoi_token_index": 6}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{% for part in message.content %}"
    "{{ part if message.content is string else '<boi>' if part.type == 'image' else part.text }}"
    "{% endfor %}{% endif %}{% endfor %}{{ '\\nmodel\\n' }}"
)
"""Without what the system says, which is longer than anything it was trained on. What ends a block eats a new line."""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of lower-case captions. Other captions make another one, so it is trained once, and kept."""
    rng = np.random.default_rng(2)
    texts = [captions.caption(Scene.draw(rng), rng).text for _ in range(20_000)]
    texts += [captions.nothing(rng).text for _ in range(500)]
    texts += [
        _chat(captions.caption(scene := Scene.draw(rng), rng).text) + captions.written_out(scene, rng)
        for _ in range(2000)
    ]
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=dict(zip(("image_token", "boi_token", "eoi_token"), SPECIAL_TOKENS[4:], strict=True)),
        padding_side="left",
        model_max_length=TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def text_encoder(vocabulary: int = VOCABULARY) -> Any:
    """A Gemma 3, untrained."""
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={
                "vocab_size": vocabulary,
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "query_pre_attn_scalar": 32,
                "sliding_window": 64,
                "layer_types": ["full_attention"] * LAYERS,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 2,
                "max_position_embeddings": 32768,
            },
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            mm_tokens_per_image=4,
            **IMAGE_TOKENS,
        )
    )


def connectors() -> LTX2TextConnectors:
    """Untrained."""
    heads: dict[str, Any] = {
        f"{stream}_connector_{what}": value
        for stream in ("video", "audio")
        for what, value in (("num_attention_heads", 4), ("attention_head_dim", WIDTH // 4), ("num_layers", 1))
    }
    return LTX2TextConnectors(caption_channels=WIDTH, text_proj_in_factor=LAYERS + 1, rope_type="split", **heads)


class Reader(nn.Module):
    """Text encoder and connectors, and on these what answers ``QUESTIONS``, for the training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = text_encoder()
        self.connectors = connectors()
        self.question = nn.Parameter(torch.randn(2, WIDTH) * 0.1)
        self.answers = nn.ModuleDict({name: nn.Linear(WIDTH, 1 + len(known)) for name, known in QUESTIONS.items()})
        # transformers would leave the images' way in at zero, and all of them would look alike
        self.text_encoder.model.vision_tower.requires_grad_(False)
        projector = self.text_encoder.model.multi_modal_projector
        nn.init.normal_(projector.mm_input_projection_weight, std=0.05)
        projector.requires_grad_(False)

    def layers(self, tokens: Any) -> tuple[Tensor, Tensor]:
        """What connectors take: hidden states ``[B, TOKENS, WIDTH, LAYERS + 1]`` and the mask of the padding.

        The tokens may be padded to less than that.
        """
        states = self.text_encoder.model.language_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        missing = TOKENS - tokens.input_ids.shape[1]
        layers = functional.pad(torch.stack(states, dim=-1), (0, 0, 0, 0, missing, 0))
        return layers, functional.pad(tokens.attention_mask, (missing, 0))

    def read(self, tokens: Any) -> tuple[Tensor, Tensor]:
        """The contexts of both streams, each ``[B, TOKENS, WIDTH]``."""
        layers, mask = self.layers(tokens)
        video, audio, _ = self.connectors(layers, mask, padding_side="left")
        return video, audio

    def answer(self, context: Tensor, which: int) -> dict[str, Tensor]:
        """Scores of each answer, from one stream's context."""
        weights = (context @ self.question[which]).softmax(-1)
        pooled = (weights[..., None] * context).sum(1)
        return {name: head(pooled) for name, head in self.answers.items()}


def run(minutes: float, steps: int = STEPS) -> Run:
    """Train them on captions alone."""
    torch.manual_seed(2)
    RUNS.mkdir(exist_ok=True)
    if not (RUNS / "tokenizer").exists():
        train_tokenizer().save_pretrained(RUNS / "tokenizer")
    reader, words = Reader(), PreTrainedTokenizerFast.from_pretrained(RUNS / "tokenizer")

    def tokens(texts: list[str]) -> Any:
        return words(texts, padding=True, max_length=TOKENS, truncation=True, return_tensors="pt")

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        if step % 3 == 2:
            return _writing(reader, words, rng)
        scenes = [Scene.draw(rng, unseen=rng.random() < 0.1) for _ in range(32)]
        told = [captions.nothing(rng) if rng.random() < 0.05 else captions.caption(scene, rng) for scene in scenes]
        contexts = reader.read(tokens([each.text for each in told]))
        total = sum(
            (_cross_entropy(reader.answer(context, which), told)[0] for which, context in enumerate(contexts)),
            torch.zeros(()),
        )
        figures = {"right": _cross_entropy(reader.answer(contexts[0], 0), told)[1]}
        if step % 30 == 0:
            with torch.no_grad():
                strange = [captions.caption(scene, rng, KEPT_BACK, whole=True) for scene in scenes]
                context = reader.read(tokens([each.text for each in strange]))[0]
                figures["right_kept_back"] = _cross_entropy(reader.answer(context, 0), strange)[1]
        return total, figures

    return Run("text", reader, loss, steps, rate=1e-3, minutes=minutes)


def _cross_entropy(scores: dict[str, Tensor], told: list[Caption]) -> tuple[Tensor, float]:
    classes = torch.tensor([each.classes for each in told])
    total, right = torch.zeros(()), torch.ones(len(told), dtype=torch.bool)
    for index, score in enumerate(scores.values()):
        total = total + functional.cross_entropy(score, classes[:, index])
        right &= score.argmax(1) == classes[:, index]
    return total, float(right.float().mean())


def _chat(text: str) -> str:
    return f"user prompt: {text}\nmodel\n"


def _writing(
    reader: Reader, words: PreTrainedTokenizerFast, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Prompts written out: what comes after the question is to be told word by word."""
    asked, wanted = [], []
    for _ in range(24):
        scene = Scene.draw(rng)
        asked.append(_chat(captions.caption(scene, rng).text))
        wanted.append(captions.written_out(scene, rng))
    rows = [
        (words(question).input_ids, [*words(" " + answer, add_special_tokens=False).input_ids, 1])
        for question, answer in zip(asked, wanted, strict=True)
    ]
    longest = max(len(question) + len(answer) for question, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (question, answer) in enumerate(rows):
        there = question + answer
        ids[row, -len(there) :] = torch.tensor(there)
        labels[row, -len(answer) :] = torch.tensor(answer)
    mask = (ids != 0).long()
    states = reader.text_encoder.model.language_model(
        input_ids=ids, attention_mask=mask, use_cache=False
    ).last_hidden_state
    scores = reader.text_encoder.lm_head(states[:, :-1])
    loss = functional.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    return loss, {"writing": float(loss.detach())}
