"""A tokenizer for the model that vllm_model makes: a word for each token, so that any sequence of tokens is a text and back the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # token 0, 1, 2, 3


def write(folder: Path, vocabulary: int, longest: int) -> None:
    """Write tokenizer.json and tokenizer_config.json for tokens 0 to `vocabulary` - 1 and at most `longest` of them."""
    words = {word: number for number, word in enumerate([*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), vocabulary))])}
    added = [
        {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for number, word in enumerate(SPECIAL)
    ]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", **names, "model_max_length": longest, "clean_up_tokenization_spaces": False,
        "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
