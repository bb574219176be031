"""More of `transformers`, tiny: experts, state spaces, later decoders and vision models, time series."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.architectures import Architecture, Input
from benchmarks.architectures.huggingface import EYE, FEED, IMAGE, LLAMA, TEXT, _make, decoder, image, text

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SOUND: dict[str, Any] = {
    "vocab_size": 32,
    **EYE,
    "feature_projection_input_dim": 16,
    "conv_depthwise_kernel_size": 5,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}
SERIES: dict[str, Any] = {
    "num_input_channels": 3,
    "context_length": 32,
    "patch_length": 8,
    "patch_stride": 8,
    "prediction_length": 8,
    "d_model": 32,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "use_cls_token": False,
}
TRANSLATION: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
    "max_position_embeddings": 64,
    "pad_token_id": 63,
    "eos_token_id": 0,
    "decoder_start_token_id": 63,
}
LATENT = {
    **LLAMA,
    **EXPERTS,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}


def _of(
    name: str,
    model: str,
    config: str,
    inputs: dict[str, Input],
    settings: dict[str, Any],
    pick: str | None = None,
    **call: Any,
) -> Architecture:
    make = partial(_make, model, config, tuple(inputs), settings, None, pick, call)
    return Architecture(name, make, tuple(inputs.values()))


ARCHITECTURES: dict[str, Architecture] = {
    "hf-qwen3-moe": decoder(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig", **LLAMA, **EXPERTS, head_dim=8, num_experts=4
    ),
    "hf-mixtral": decoder(
        "MixtralForCausalLM", "MixtralConfig", **LLAMA, num_local_experts=4, num_experts_per_tok=2
    ),
    "hf-deepseek-v3": decoder("DeepseekV3ForCausalLM", "DeepseekV3Config", **LATENT),
    "hf-gemma2": decoder("Gemma2ForCausalLM", "Gemma2Config", **LLAMA, head_dim=8, sliding_window=8),
    "hf-gemma3": decoder("Gemma3ForCausalLM", "Gemma3TextConfig", **LLAMA, head_dim=8, sliding_window=8),
    "hf-smollm3": decoder("SmolLM3ForCausalLM", "SmolLM3Config", **LLAMA, pad_token_id=0),
    "hf-granite": decoder("GraniteForCausalLM", "GraniteConfig", **LLAMA),
    "hf-cohere": decoder("CohereForCausalLM", "CohereConfig", **LLAMA),
    "hf-glm4": decoder("Glm4ForCausalLM", "Glm4Config", **LLAMA, head_dim=8, pad_token_id=0),
    "hf-phi3": decoder("Phi3ForCausalLM", "Phi3Config", **LLAMA, pad_token_id=0),
    "hf-starcoder2": decoder("Starcoder2ForCausalLM", "Starcoder2Config", **LLAMA),
    "hf-mamba": decoder(
        "MambaForCausalLM", "MambaConfig", vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "hf-esm": text(
        "EsmModel",
        "EsmConfig",
        **TEXT,
        **FEED,
        pad_token_id=1,
        mask_token_id=2,
        position_embedding_type="rotary",
        max_position_embeddings=64,
    ),
    "hf-fnet": text(
        "FNetModel", "FNetConfig", vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=64
    ),
    "hf-squeezebert": text("SqueezeBertModel", "SqueezeBertConfig", **TEXT, **FEED, embedding_size=32),
    "hf-deberta": text("DebertaModel", "DebertaConfig", **TEXT, **FEED),
    "hf-dinov3": image("DINOv3ViTModel", "DINOv3ViTConfig", **IMAGE, **EYE),
    "hf-vitdet": image(
        "VitDetModel",
        "VitDetConfig",
        **IMAGE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        window_block_indices=[0],
        window_size=2,
    ),
    "hf-bit": image(
        "BitForImageClassification",
        "BitConfig",
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        num_groups=4,
        size=64,
    ),
    "hf-wav2vec2-bert": _of(
        "wav2vec 2.0", "Wav2Vec2BertModel", "Wav2Vec2BertConfig", {"input_features": Input((20, 16))}, SOUND
    ),
    "hf-patchtst": _of(
        "PatchTST",
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {"past_values": Input((32, 3))},
        SERIES,
        "prediction_outputs",
    ),
    "hf-marian": _of(
        "Marian",
        "MarianMTModel",
        "MarianConfig",
        {"input_ids": Input((12,), 60), "decoder_input_ids": Input((7,), 60)},
        TRANSLATION,
        "logits",
        use_cache=False,
    ),
}
