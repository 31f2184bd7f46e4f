"""A word-level tokenizer for the sandbox's small language, with an exact round trip, as a stock fast tokenizer.

Tokens carry their leading blank (" the"), so decoding is joining. A time on a half second is one token ("2.0s");
other numbers fall apart into digits; a word that the world does not know becomes <|unk|>, so any text tokenizes.
The tags of a response (<think> ...) are added tokens but not special ones: decoding keeps them. Qwen3-VL's tokenizer
has the same tokens under the same ids, and after them those of its timestamps, one token each ("<2.4 seconds>")."""

from __future__ import annotations

from typing import Any

from taro.sandbox.world import ACTIONS, COLOURS, ORDINALS, SHAPES

__all__ = ["CHAT_TEMPLATE", "SPECIAL", "STAMPED_SIZE", "TAGS", "VOCABULARY", "VOCABULARY_SIZE", "build_tokenizer",
           "stamp"]

SPECIAL = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>",
           "<|image_pad|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WORDS = ("user", "assistant", "when", "does", "happen", "happens", "I", "need", "to", "find", "the", "specific",
         "moment", "From", "for", "time", "describe", "events", "segment", "what", "at", "nothing", "is", "seen",
         "hidden", "big", "left", "right", "top", "bottom", "middle", *ORDINALS, *COLOURS, *SHAPES, *ACTIONS)
PIECES = (*".,?:;!'\"-", *"0123456789", "s")
LONGEST_S = 40
"""times up to here are one token"""
TIMES = tuple(f"{half / 2:.1f}s" for half in range(2 * LONGEST_S + 1))
VOCABULARY = (*SPECIAL, *TAGS, "\n", " ", *(blank + word for word in (*WORDS, *PIECES, *TIMES) for blank in ("", " ")))
VOCABULARY_SIZE = 384
"""rows of the embedding: the vocabulary, rounded up"""


def stamp(seconds: float) -> str:
    """Qwen3-VL's text before a temporal patch, given its time.

    >>> stamp(2.4375)
    '<2.4 seconds>'
    """
    return f"<{seconds:.1f} seconds>"


STAMPS = (*(stamp(tenth / 10) for tenth in range(10 * LONGEST_S + 1)), "<", ">", " seconds")
"""later times fall apart"""
STAMPED_SIZE = 768
"""as VOCABULARY_SIZE, with timestamps"""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
"""as Qwen's, without a system turn"""


def build_tokenizer(*, ends_with_eos: bool = False, stamped: bool = False) -> Any:
    """The tokenizer as a `PreTrainedTokenizerFast`.

    Args:
        ends_with_eos: every text ends with <|im_end|>, as the CLIP model's text tower needs it.
        stamped: with the timestamps of Qwen3-VL.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = (*VOCABULARY, *STAMPS) if stamped else VOCABULARY
    assert len(set(vocabulary)) == len(vocabulary) <= (STAMPED_SIZE if stamped else VOCABULARY_SIZE)
    ids = {token: number for number, token in enumerate(vocabulary)}
    core = Tokenizer(models.WordLevel(vocab=ids, unk_token="<|unk|>"))
    time = r" ?(?:40\.0|[1-3]?[0-9]\.[05])s"
    if stamped:
        time = rf"<(?:40\.0|[1-3]?[0-9]\.[0-9]) seconds>|{time}"
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{time}|\n| ?[A-Za-z]+| ?[^\sA-Za-z]|\s"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    if ends_with_eos:
        core.post_processor = processors.TemplateProcessing(single="$A <|im_end|>",
                                                            special_tokens=[("<|im_end|>", ids["<|im_end|>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", unk_token="<|unk|>", eos_token="<|im_end|>",
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|pad|>", "<|unk|>", "<|im_end|>")],
        clean_up_tokenization_spaces=False, model_max_length=4096, padding_side="right", chat_template=CHAT_TEMPLATE)
