"""Language and vision models of `transformers` whose rows, tokens or places are routed or packed.

Tiny, float64 where the model's own code keeps it.
"""

import torch

from tests.oracles.cases import tokens
from tests.oracles.owner_cases import (
    Owned,
    document,
    given_slots,
    packed_rows,
    places_of,
)

SIZES = {
    "vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip


def built(name, kind="ForCausalLM", config=None, **changes):
    """A model from its configuration's class name."""

    def build():
        import transformers

        make = getattr(transformers, f"{config or name}Config")
        return getattr(transformers, f"{name}{kind}")(make(**{**SIZES, **changes}))

    return build


def experts(name, implementation, **changes):
    def build():
        model = built(name, **{"num_key_value_heads": 2, **changes})()
        model.config._experts_implementation = implementation
        return model

    return build


def logits(model, x):
    return model(input_ids=x).logits


def packed_logits(model, x, owner):
    return model(input_ids=x, position_ids=places_of(owner), use_cache=False).logits


def sparse_head(model, x, labels):
    out = model(input_ids=x, labels=labels)
    return out.logits


def masked_tokens(samples):
    x = torch.randint(1, 23, (samples, 6))
    labels = torch.where(torch.rand(samples, 6) < 0.4, x, -100)
    labels[:, 2] = x[:, 2]
    return x, labels


def pictures(channels=3, size=8):
    return lambda samples: (torch.randn(samples, channels, size, size, dtype=torch.float64),)


def of_pixels(model, x):
    return model(pixel_values=x).logits


def translated(model, x):
    return model(input_ids=x, decoder_input_ids=x.flip(1)).logits


FOUR = {"num_local_experts": 4, "num_experts_per_tok": 2}
QUIET = {
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip

KINDS = {
    "mixtral": ("Mixtral", FOUR),
    "qwen3-moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 4,
         "decoder_sparse_step": 1},
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOss", {**FOUR, "head_dim": 4, "sliding_window": 4,
                           "attn_implementation": "eager"}),
    "deepseek": (
        "DeepseekV3",
        {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2,
         "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 8,
         "kv_lora_rank": 4, "q_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
         "v_head_dim": 4, "num_key_value_heads": 4},
    ),
}  # fmt: skip
SINGLE = {"tolerance": 2e-3, "dtype": torch.float32}  # no grouped product of double precision

ROUTED = [
    Owned(
        f"{name}-{how}", experts(kind, how, **sizes), tokens(6, 23), logits,
        **(SINGLE if how == "grouped_mm" or name in ("gpt-oss", "deepseek") else {}),
    )
    for name, (kind, sizes) in KINDS.items()
    for how in ("eager", "batched_mm", "grouped_mm")
]  # fmt: skip


class Routed(torch.nn.Module):
    """Experts of Mixtral without a router: each token says where it goes."""

    def __init__(self, implementation):
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        super().__init__()
        config = MixtralConfig(hidden_size=8, intermediate_size=8, num_local_experts=4)
        config._experts_implementation = implementation
        self.table = torch.nn.Embedding(23, 8)
        self.experts = MixtralExperts(config)
        for p in self.experts.parameters():
            torch.nn.init.normal_(p)


def counted(samples):
    """No token for the first expert, one for the second, as many as samples for the third."""
    where = torch.full((samples, 3, 1), 3)
    where[:, 0], where[0, 1] = 2, 1
    return torch.randint(23, (samples, 3)), where


def told_where(m, x, where):
    flat = m.table(x).flatten(0, 1)
    return m.experts(flat, where.flatten(0, 1), torch.full_like(flat[:, :1], 0.7))


ROUTED += [
    Owned(f"experts-counted-{how}", lambda how=how: Routed(how), counted, told_where,
          **(SINGLE if how == "grouped_mm" else {}))
    for how in ("eager", "batched_mm", "grouped_mm")
]  # fmt: skip

PACKED = [
    Owned(
        f"{name}-packed-{how}", build, packed_rows(vocabulary=23), packed_logits, given=given_slots,
        alone=document, tolerance=tolerance,
    )
    for how in ("sdpa", "eager")
    for name, build, tolerance in (
        ("llama", built("Llama", num_key_value_heads=2, attn_implementation=how),
         1e-9 if how == "sdpa" else 1e-5),
        ("gpt2", built("GPT2", "LMHeadModel", n_embd=16, n_layer=2, n_head=2, n_positions=32,
                       resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation=how),
         1e-9),
    )
]  # fmt: skip

OTHERS = [
    Owned("gpt-neox", built("GPTNeoX", **QUIET), tokens(4, 23), logits),
    Owned("bert-tokens", built("Bert", "ForMaskedLM", **QUIET), tokens(4, 23), logits),
    Owned(
        "t5",
        built("T5", "ForConditionalGeneration", d_model=16, d_kv=4, d_ff=24, num_layers=2,
              num_heads=4, dropout_rate=0.0, decoder_start_token_id=0),
        tokens(4, 23), translated,
    ),
    Owned(
        "modernbert-sparse",
        built("ModernBert", "ForMaskedLM", sparse_prediction=True, attention_dropout=0.0,
              embedding_dropout=0.0, mlp_dropout=0.0, reference_compile=False, cls_token_id=1,
              sep_token_id=2, local_attention=4),
        masked_tokens, sparse_head,
    ),
    Owned(
        "vit",
        built("ViT", "ForImageClassification", image_size=8, patch_size=4, num_labels=3, **QUIET),
        pictures(), of_pixels,
    ),
    Owned(
        "swin",
        built("Swin", "ForImageClassification", image_size=16, patch_size=2, embed_dim=8,
              depths=[2, 2], num_attention_heads=[2, 2], window_size=2,
              drop_path_rate=0.0, num_labels=3,
              **QUIET),
        pictures(), of_pixels,
    ),
    Owned(
        "convnext",
        built("ConvNext", "ForImageClassification", depths=[1, 1], hidden_sizes=[4, 8],
              patch_size=2, num_stages=2, num_labels=3, drop_path_rate=0.0),
        pictures(), of_pixels,
    ),
    Owned(
        "mamba2",
        built("Mamba2", hidden_size=16, num_heads=4, head_dim=8, state_size=8, n_groups=1,
              expand=2, chunk_size=4),
        tokens(4, 23), logits, tolerance=1e-4,
    ),
]  # fmt: skip

MODELS = ROUTED + PACKED + OTHERS
