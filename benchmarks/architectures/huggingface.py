"""Architectures from `transformers` configurations, tiny, random weights. A tool of the benchmark only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import nn

from benchmarks.architectures import Architecture, Input

TEXT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FEED = {"intermediate_size": 64}
IMAGE = {"image_size": 32, "patch_size": 8, "num_channels": 3}
EYE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class Wrapped(nn.Module):
    """Positional tensors in, the first tensor of the output out; no cache."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], pick: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self.model, self.names, self.pick, self.kwargs = model, names, pick, kwargs

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        out = self.model(**dict(zip(self.names, inputs)), **self.kwargs)
        return out[self.pick] if self.pick else out[0]


def _make(
    model: str,
    config: str,
    names: tuple[str, ...],
    settings: dict[str, Any],
    part: Callable[[Any], nn.Module] | None,
    pick: str | None,
    call: dict[str, Any],
) -> nn.Module:
    configuration = getattr(hf, config)(**settings)
    module = getattr(hf, model)(configuration)
    return Wrapped(part(module) if part else module, names, pick, **call)


def text(
    model: str, config: str, *, family: str | None = None, call: dict[str, Any] | None = None, **settings: Any
) -> Architecture:
    make = partial(_make, model, config, ("input_ids",), settings, None, None, call or {})
    return Architecture(family or model, make, (Input((12,), 60),))


def decoder(model: str, config: str, **settings: Any) -> Architecture:
    return text(model, config, call={"use_cache": False}, **settings)


def image(model: str, config: str, size: int = 32, pick: str | None = None, **settings: Any) -> Architecture:
    make = partial(_make, model, config, ("pixel_values",), settings, None, pick, {})
    return Architecture(model, make, (Input((3, size, size)),))


LLAMA = {**TEXT, **FEED, "num_key_value_heads": 2, "max_position_embeddings": 64}

ARCHITECTURES: dict[str, Architecture] = {
    "hf-bert": text("BertModel", "BertConfig", **TEXT, **FEED),
    "hf-distilbert": text(
        "DistilBertModel", "DistilBertConfig", vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    ),
    "hf-roberta": text("RobertaForSequenceClassification", "RobertaConfig", **TEXT, **FEED),
    "hf-albert": text("AlbertModel", "AlbertConfig", **TEXT, **FEED, embedding_size=16),
    "hf-electra": text("ElectraModel", "ElectraConfig", **TEXT, **FEED, embedding_size=16),
    "hf-mobilebert": text(
        "MobileBertModel",
        "MobileBertConfig",
        **TEXT,
        **FEED,
        embedding_size=16,
        intra_bottleneck_size=16,
        num_feedforward_networks=2,
    ),
    "hf-deberta-v2": text("DebertaV2Model", "DebertaV2Config", **TEXT, **FEED),
    "hf-modernbert": text(
        "ModernBertModel", "ModernBertConfig", **TEXT, **FEED, pad_token_id=0, attn_implementation="sdpa"
    ),
    "hf-gpt2": decoder(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
    "hf-gpt-neo": decoder(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
    ),
    "hf-gpt-neox": decoder("GPTNeoXForCausalLM", "GPTNeoXConfig", **TEXT, **FEED),
    "hf-opt": decoder(
        "OPTForCausalLM", "OPTConfig", **TEXT, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64
    ),
    "hf-bloom": decoder(
        "BloomForCausalLM", "BloomConfig", vocab_size=64, hidden_size=32, n_layer=2, n_head=4
    ),
    "hf-falcon": decoder("FalconForCausalLM", "FalconConfig", **TEXT),
    "hf-llama": decoder("LlamaForCausalLM", "LlamaConfig", **LLAMA),
    "hf-mistral": decoder("MistralForCausalLM", "MistralConfig", **LLAMA),
    "hf-qwen2": decoder("Qwen2ForCausalLM", "Qwen2Config", **LLAMA),
    "hf-qwen3": decoder("Qwen3ForCausalLM", "Qwen3Config", **LLAMA, head_dim=8),
    "hf-gemma": decoder("GemmaForCausalLM", "GemmaConfig", **LLAMA, head_dim=8),
    "hf-phi": decoder("PhiForCausalLM", "PhiConfig", **{**LLAMA, "num_key_value_heads": 4}),
    "hf-olmo2": decoder("Olmo2ForCausalLM", "Olmo2Config", **LLAMA),
    "hf-stablelm": decoder("StableLmForCausalLM", "StableLmConfig", **LLAMA),
    "hf-t5-encoder": text(
        "T5EncoderModel", "T5Config", vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    ),
    "hf-vit": image("ViTForImageClassification", "ViTConfig", **IMAGE, **EYE),
    "hf-deit": image("DeiTForImageClassification", "DeiTConfig", **IMAGE, **EYE),
    "hf-beit": image("BeitForImageClassification", "BeitConfig", **IMAGE, **EYE),
    "hf-dinov2": image(
        "Dinov2Model", "Dinov2Config", **IMAGE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    ),
    "hf-swin": image(
        "SwinForImageClassification",
        "SwinConfig",
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "hf-swinv2": image(
        "Swinv2ForImageClassification",
        "Swinv2Config",
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "hf-convnext": image(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        image_size=64,
        size=64,
    ),
    "hf-convnextv2": image(
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        image_size=64,
        size=64,
    ),
    "hf-resnet": image(
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        size=64,
    ),
    "hf-regnet": image(
        "RegNetForImageClassification",
        "RegNetConfig",
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        groups_width=8,
        size=64,
    ),
    "hf-mobilenet-v2": image(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        depth_multiplier=0.35,
        image_size=64,
        size=64,
    ),
    "hf-efficientnet": image(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        image_size=64,
        width_coefficient=0.3,
        depth_coefficient=0.3,
        hidden_dim=384,
        size=64,
    ),
    "hf-mobilevit": image(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 48],
        size=64,
    ),
    "hf-mobilevitv2": image(
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        image_size=64,
        width_multiplier=0.25,
        size=64,
    ),
    "hf-segformer": image(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=16,
        size=64,
    ),
    "hf-pvt-v2": image(
        "PvtV2ForImageClassification",
        "PvtV2Config",
        image_size=64,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 3, 4],
        size=64,
    ),
    "hf-poolformer": image(
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        size=64,
    ),
    "hf-focalnet": image(
        "FocalNetForImageClassification",
        "FocalNetConfig",
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "hf-levit": image(
        "LevitForImageClassification",
        "LevitConfig",
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        size=64,
    ),
    "hf-cvt": image(
        "CvtForImageClassification",
        "CvtConfig",
        embed_dim=[16, 24, 32],
        num_heads=[1, 3, 4],
        depth=[1, 2, 3],
        size=64,
    ),
    "hf-clip-vision": image("CLIPVisionModel", "CLIPVisionConfig", **IMAGE, **EYE),
    "hf-siglip-vision": image("SiglipVisionModel", "SiglipVisionConfig", **IMAGE, **EYE),
    "hf-dpt": image(
        "DPTForDepthEstimation",
        "DPTConfig",
        **IMAGE,
        **{**EYE, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 16, 24],
        fusion_hidden_size=16,
        head_in_index=-1,
    ),
    "hf-yolos": image(
        "YolosModel", "YolosConfig", **{**IMAGE, "image_size": [32, 32]}, **EYE, num_detection_tokens=4
    ),
    "hf-whisper-encoder": Architecture(
        "Whisper",
        partial(
            _make,
            "WhisperModel",
            "WhisperConfig",
            ("input_features",),
            {
                "vocab_size": 64,
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 1,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
                "max_source_positions": 16,
                "num_mel_bins": 8,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "decoder_start_token_id": 1,
            },
            lambda m: m.encoder,
            None,
            {},
        ),
        (Input((8, 32)),),
    ),
    "hf-t5": Architecture(
        "T5",
        partial(
            _make,
            "T5ForConditionalGeneration",
            "T5Config",
            ("input_ids", "decoder_input_ids"),
            {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
            None,
            "logits",
            {"use_cache": False},
        ),
        (Input((12,), 60), Input((7,), 60)),
    ),
    "hf-bart": Architecture(
        "BART",
        partial(
            _make,
            "BartModel",
            "BartConfig",
            ("input_ids", "decoder_input_ids"),
            {
                "vocab_size": 64,
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
                "max_position_embeddings": 64,
            },
            None,
            None,
            {"use_cache": False},
        ),
        (Input((12,), 60), Input((7,), 60)),
    ),
    "hf-wav2vec2": Architecture(
        "wav2vec 2.0",
        partial(
            _make,
            "Wav2Vec2Model",
            "Wav2Vec2Config",
            ("input_values",),
            {
                "vocab_size": 32,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "conv_dim": (16, 16, 16),
                "conv_stride": (5, 2, 2),
                "conv_kernel": (10, 3, 3),
                "num_conv_pos_embeddings": 16,
                "num_conv_pos_embedding_groups": 4,
                "mask_time_prob": 0.0,
                "apply_spec_augment": False,
            },
            None,
            None,
            {},
        ),
        (Input((800,)),),
    ),
    "hf-clip": Architecture(
        "CLIP",
        partial(
            _make,
            "CLIPModel",
            "CLIPConfig",
            ("input_ids", "pixel_values"),
            {
                "text_config": {
                    **TEXT,
                    **FEED,
                    "max_position_embeddings": 16,
                    "eos_token_id": 2,
                    "bos_token_id": 1,
                    "pad_token_id": 0,
                },
                "vision_config": {**IMAGE, **EYE},
                "projection_dim": 24,
            },
            None,
            "logits_per_image",
            {},
        ),
        (Input((12,), 60), Input((3, 32, 32))),
    ),
}
