"""Which architectures the sweep covers: tiny random configurations, no weights, nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = dict[str, Any]

_VOCABULARY = 96
_TINY = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OTHER_WORDS = ("swin",)  # whose configurations mean something else by the same names
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_IMAGE = {"image_size": 32, "patch_size": 8, "num_channels": 3}


@dataclass(frozen=True)
class Architecture:
    """A model to try.

    Attributes:
        name: As the table has it.
        library: ``"transformers"``, ``"timm"`` or ``"diffusers"``.
        build: Makes the model, randomly initialised from the global generator.
        inputs: Makes keyword arguments of ``forward`` from a batch size and a length; what has no
            length ignores it.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]


def _tokens(batch: int, length: int) -> Inputs:
    return {"input_ids": torch.randint(3, _VOCABULARY, (batch, length)), "use_cache": False}


def _masked_tokens(batch: int, length: int) -> Inputs:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -2:] = 0
    return {"input_ids": torch.randint(3, _VOCABULARY, (batch, length)), "attention_mask": mask}


def _two_sequences(batch: int, length: int) -> Inputs:
    return {
        "input_ids": torch.randint(3, _VOCABULARY, (batch, length)),
        "decoder_input_ids": torch.randint(3, _VOCABULARY, (batch, length // 2)),
        "use_cache": False,
    }


def _image(batch: int, length: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def _image_and_text(batch: int, length: int) -> Inputs:
    return {**_image(batch, length), **_masked_tokens(batch, length)}


def _wave(batch: int, length: int) -> Inputs:
    return {"input_values": torch.randn(batch, 100 * length)}


def _spectrogram(batch: int, length: int) -> Inputs:
    return {
        "input_features": torch.randn(batch, 16, 64),
        "decoder_input_ids": torch.randint(3, _VOCABULARY, (batch, length)),
        "use_cache": False,
    }


def _transformers(
    model_type: str, head: str, inputs: Callable[[int, int], Inputs], **overrides: Any
) -> Architecture:
    def build() -> nn.Module:
        import transformers

        sizes = {} if model_type in _OTHER_WORDS else _TINY
        config = transformers.AutoConfig.for_model(model_type, **{**sizes, **overrides})
        model: nn.Module = getattr(transformers, head).from_config(config)
        return model

    return Architecture(model_type, "transformers", build, inputs)


def _decoder(model_type: str, **overrides: Any) -> Architecture:
    return _transformers(model_type, "AutoModelForCausalLM", _tokens, **overrides)


def _encoder(model_type: str, **overrides: Any) -> Architecture:
    return _transformers(model_type, "AutoModel", _masked_tokens, **overrides)


def _vision(model_type: str, **overrides: Any) -> Architecture:
    return _transformers(model_type, "AutoModel", _image, **{**_IMAGE, **overrides})


def _seq2seq(model_type: str, **overrides: Any) -> Architecture:
    sides = {
        f"{side}_{what}": number
        for side in ("encoder", "decoder")
        for what, number in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
    }
    return _transformers(
        model_type,
        "AutoModelForSeq2SeqLM",
        _two_sequences,
        **{"d_model": 32, "decoder_start_token_id": 2, **sides, **overrides},
    )


def _timm(name: str, **arguments: Any) -> Architecture:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **arguments)
        return model

    size = arguments.get("img_size", 32)
    return Architecture(
        name, "timm", build, lambda batch, length: {"x": torch.randn(batch, 3, size, size)}
    )


def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )


def _flux_inputs(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, 16, 4),
        "encoder_hidden_states": torch.randn(batch, length, 32),
        "pooled_projections": torch.randn(batch, 32),
        "timestep": torch.rand(batch),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(length, 3),
        "return_dict": False,
    }


def _sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=16,
    )


def _sd3_inputs(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch, length, 32),
        "pooled_projections": torch.randn(batch, 64),
        "timestep": torch.rand(batch),
        "return_dict": False,
    }


def _pixart() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        cross_attention_dim=32,
        caption_channels=32,
        out_channels=8,
        use_additional_conditions=False,
    )


def _pixart_inputs(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch, length, 32),
        "timestep": torch.randint(1000, (batch,)),
        "added_cond_kwargs": {"aspect_ratio": None, "resolution": None},
        "return_dict": False,
    }


ARCHITECTURES: tuple[Architecture, ...] = (
    _decoder("llama", **_GROUPED),
    _decoder("mistral", **_GROUPED),
    _decoder("mixtral", **_GROUPED, **_EXPERTS),
    _decoder("qwen2", **_GROUPED),
    _decoder("qwen3", **_GROUPED),
    _decoder("qwen3_moe", **_GROUPED, **_EXPERTS, moe_intermediate_size=32),
    _decoder("gemma", **_GROUPED),
    _decoder("gemma2", **_GROUPED),
    _decoder("gemma3_text", **_GROUPED),
    _decoder("phi"),
    _decoder("phi3", **_GROUPED),
    _decoder("gpt2"),
    _decoder("gpt_neo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    _decoder("gpt_neox"),
    _decoder("gptj", rotary_dim=4),
    _decoder("gpt_oss", **_GROUPED, **_EXPERTS),
    _decoder("opt", ffn_dim=64, word_embed_proj_dim=32),
    _decoder("bloom", n_head=4, n_layer=2),
    _decoder("falcon"),
    _decoder("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    _decoder("starcoder2", **_GROUPED),
    _decoder("stablelm", **_GROUPED),
    _decoder("olmo", **_GROUPED),
    _decoder("olmo2", **_GROUPED),
    _decoder("olmoe", **_GROUPED, **_EXPERTS),
    _decoder("cohere", **_GROUPED),
    _decoder("cohere2", **_GROUPED),
    _decoder("granite", **_GROUPED),
    _decoder("glm", **_GROUPED),
    _decoder("glm4", **_GROUPED),
    _decoder("nemotron", **_GROUPED),
    _decoder("persimmon"),
    _decoder("codegen", rotary_dim=4),
    _decoder("smollm3", **_GROUPED),
    _decoder("helium", **_GROUPED),
    _decoder("ernie4_5", **_GROUPED),
    _decoder("modernbert-decoder"),
    _decoder(
        "deepseek_v3",
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
    ),
    _encoder("bert"),
    _encoder("roberta", max_position_embeddings=66),
    _encoder("distilbert", dim=32, hidden_dim=64, n_layers=2, n_heads=4),
    _encoder("electra", embedding_size=32),
    _encoder("albert", embedding_size=16),
    _encoder("deberta-v2"),
    _encoder("mpnet", max_position_embeddings=66),
    _encoder("modernbert"),
    _seq2seq("t5", d_ff=64, d_kv=8, num_layers=2, num_heads=4),
    _seq2seq("bart"),
    _seq2seq("pegasus"),
    _vision("vit"),
    _vision("deit"),
    _vision("beit"),
    _vision("dinov2"),
    _vision("swin", embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=2, patch_size=4),
    _vision("convnext", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], patch_size=4),
    _transformers(
        "clip",
        "AutoModel",
        _image_and_text,
        text_config=_TINY,
        vision_config={**_TINY, **_IMAGE},
        projection_dim=32,
    ),
    _transformers(
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        _spectrogram,
        d_model=32,
        num_mel_bins=16,
        max_source_positions=32,
        max_target_positions=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        decoder_start_token_id=2,
    ),
    _transformers(
        "wav2vec2",
        "AutoModel",
        _wave,
        conv_dim=(16, 16, 16),
        conv_kernel=(8, 4, 4),
        conv_stride=(4, 4, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
    ),
    _timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4),
    _timm("deit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4),
    _timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=2,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
    ),
    _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 16, 16)),
    _timm("mixer_s32_224", img_size=64),
    _timm("eva02_tiny_patch14_224", img_size=28, depth=2, embed_dim=48, num_heads=4),
    _timm("poolformer_s12"),
    _timm("resnet18"),
    _timm("cait_xxs24_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4),
    _timm("beitv2_base_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4),
    Architecture("FluxTransformer2DModel", "diffusers", _flux, _flux_inputs),
    Architecture("SD3Transformer2DModel", "diffusers", _sd3, _sd3_inputs),
    Architecture("PixArtTransformer2DModel", "diffusers", _pixart, _pixart_inputs),
)
