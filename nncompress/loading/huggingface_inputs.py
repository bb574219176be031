"""What a model of transformers takes, as the configuration beside it says: sizes, lengths, normalization."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.errors import UnsupportedError
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.loading.module.free_lengths import Length

_TOKENS = 32  # of a text, where nobody states its length
_PIXELS = 224  # of an image whose size the configuration leaves open
_SECOND = 16_000  # samples
_LONGEST = 4096  # tokens, where the configuration has no limit (positions that are relative)
_LONGEST_SOUND = 300 * _SECOND


def default_inputs(model: Any, folder: Path) -> dict[str, Tensor]:
    """Two samples of what it takes, as its configuration says."""
    config = getattr(model.config, "text_config", model.config)
    generator = torch.Generator().manual_seed(0)
    main = model.main_input_name
    parameters = inspect.signature(type(model).forward).parameters

    def tokens(length: int) -> Tensor:
        return torch.randint(0, config.vocab_size, (2, length), generator=generator)

    if main == "input_ids":
        length = min(_TOKENS, _longest(model))
        mask = torch.ones(2, length, dtype=torch.int64)
        mask[0, length // 2 + 1 :] = 0  # the first sample is shorter
        found, two = {main: tokens(length)}, model.config.is_encoder_decoder
        if "attention_mask" in parameters and (two or not model.can_generate()):
            found["attention_mask"] = mask
        if two and "decoder_input_ids" in parameters:
            found["decoder_input_ids"] = tokens(min(8, length))
        return found
    if main == "pixel_values":
        size = getattr(model.config, "image_size", _PIXELS)
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(model.config, "num_channels", 3)
        return {main: torch.randn(2, channels, height, width, generator=generator)}
    if main == "input_values":
        return {main: torch.randn(2, _SECOND, generator=generator)}
    raise UnsupportedError(
        f"{folder}: it is not known what {type(model).__name__} takes",
        got=f"its main input is {main!r}",
        remedy=f"state it: --input {main}:Bx…",
    )


_SEQUENCES = {
    **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "position_ids"), "length"),
    **dict.fromkeys(("inputs_embeds", "input_values"), "length"),
    **dict.fromkeys(("decoder_input_ids", "decoder_attention_mask"), "decoder_length"),
}


def length_of(model: Any, name: str) -> Length | None:
    """What lies along the second dim of that input: None where it is no sequence."""
    if name not in _SEQUENCES:
        return None
    sound = model.main_input_name == "input_values"
    return Length(_SEQUENCES[name], _LONGEST_SOUND if sound else _longest(model))


def _longest(model: Any) -> int:
    """How many tokens it has positions for."""
    config = getattr(model.config, "text_config", model.config)
    positions: int = getattr(config, "max_position_embeddings", None) or _LONGEST
    for name, part in model.named_modules():  # RoBERTa counts them from behind that of padding
        padding = part.padding_idx if isinstance(part, nn.Embedding) and "position" in name else None
        if padding is not None:
            return positions - padding - 1
    return positions


def normalization(folder: Path) -> str | None:
    """As --normalize takes it, of preprocessor_config.json; None where it says none, or scales otherwise."""
    try:
        said = read_json(folder / "preprocessor_config.json")
    except Unreadable:
        return None
    match said:
        case {"image_mean": [*mean], "image_std": [*std]} if all(
            isinstance(value, int | float) for value in (*mean, *std)
        ):
            if said.get("do_normalize", True) and said.get("do_rescale", True):
                return "/".join(",".join(f"{value:g}" for value in values) for values in (mean, std))
    return None
