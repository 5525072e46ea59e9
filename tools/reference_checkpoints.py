"""The tiny random checkpoints of tools/make_references.py: shapes, weights, tokenizer, files."""

import json
import math
import os
import shutil
import numpy as np

PROMPT_TOKENS = 48
LONG_PROMPT_TOKENS = 200
GREEDY_TOKENS = 64
MIN_MARGIN = 1e-3  # smallest top-2 distance of the logits along a greedy path
DECODE_STEPS_KEPT = (1, 2, 3, 4, 63)

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
ADDED_TOKENS = ["<think>", "</think>"]  # added, but ordinary text for a decoder
EOS_ID, BOS_ID, IM_END_ID, PAD_ID = 0, 1, 2, 3
VOCAB_SIZE = 288

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILIES = {
    "tiny-llama3": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "rope_theta": 500.0, "rope_scaling": LLAMA3_SCALING,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False,
        "eos_token_id": [EOS_ID, IM_END_ID],
    },
    "tiny-smol": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 72, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "rope_scaling": None,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False,
        "eos_token_id": EOS_ID,
    },
    "tiny-qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
        "hidden_size": 56, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 512, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2,
        "eos_token_id": EOS_ID,
    },
    "tiny-qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 512, "rope_theta": 1000000.0, "rope_scaling": None,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
        "eos_token_id": EOS_ID,
    },
}


# --- checkpoints ------------------------------------------------------------------------------


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def random_weights(config, seed):
    """Weights with Hugging Face names, float32 values that BF16 and F16 round but do not distort.

    Gains are set so that attention is peaked rather than flat and logits have a standard deviation
    of about 4: differences of position, head mapping or scaling then change the greedy path.
    """
    rng = np.random.default_rng(seed)
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    q_size = config["num_attention_heads"] * head_dim(config)
    kv_size = config["num_key_value_heads"] * head_dim(config)

    def matrix(rows, cols, gain):
        return (rng.standard_normal((rows, cols)) * (gain / math.sqrt(cols))).astype(np.float32)

    def norm(size):
        return (1.0 + 0.2 * rng.standard_normal(size)).astype(np.float32)

    w = {}
    tied = config["tie_word_embeddings"]
    # A tied matrix is both a table of unit-variance rows and a head whose logits should spread.
    embed_gain = 4.0 if tied else math.sqrt(hidden)
    w["model.embed_tokens.weight"] = matrix(VOCAB_SIZE, hidden, embed_gain)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        w[p + "input_layernorm.weight"] = norm(hidden)
        qk_gain = 1.0 if config["model_type"] == "qwen3" else 1.6
        w[p + "self_attn.q_proj.weight"] = matrix(q_size, hidden, qk_gain)
        w[p + "self_attn.k_proj.weight"] = matrix(kv_size, hidden, qk_gain)
        w[p + "self_attn.v_proj.weight"] = matrix(kv_size, hidden, 1.0)
        if config["model_type"] == "qwen2":
            for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
                w[p + f"self_attn.{name}_proj.bias"] = (0.5 * rng.standard_normal(size)).astype(np.float32)
        if config["model_type"] == "qwen3":
            w[p + "self_attn.q_norm.weight"] = norm(head_dim(config)) * np.float32(1.3)
            w[p + "self_attn.k_norm.weight"] = norm(head_dim(config))
        residual_gain = 2.5 if tied else 1.0
        w[p + "self_attn.o_proj.weight"] = matrix(hidden, q_size, residual_gain)
        w[p + "post_attention_layernorm.weight"] = norm(hidden)
        w[p + "mlp.gate_proj.weight"] = matrix(inter, hidden, 1.5)
        w[p + "mlp.up_proj.weight"] = matrix(inter, hidden, 1.5)
        w[p + "mlp.down_proj.weight"] = matrix(hidden, inter, residual_gain)
    w["model.norm.weight"] = norm(hidden)
    if not tied:
        w["lm_head.weight"] = matrix(VOCAB_SIZE, hidden, 4.0)
    return w


def config_json(config, dtype, transformers5):
    out = dict(config)
    out.update(vocab_size=VOCAB_SIZE, bos_token_id=BOS_ID, pad_token_id=PAD_ID, hidden_act="silu",
               attention_dropout=0.0, initializer_range=0.02, use_cache=True)
    if transformers5:
        scaling = out.pop("rope_scaling", None) or {"rope_type": "default"}
        out["rope_parameters"] = {**scaling, "rope_theta": out.pop("rope_theta")}
        out["dtype"] = dtype
        out["transformers_version"] = "5.23.0"
    else:
        out["torch_dtype"] = dtype
        out["transformers_version"] = "4.46.3"
    return dict(sorted(out.items()))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write("\n")


def make_tokenizer():
    """A byte-level BPE tokenizer over all 256 bytes with a few merges, SmolLM2's pre-tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġ", "a"), ("i", "n"), ("Ġt", "he"), ("r", "e"), ("o", "n"),
              ("Ġ", "s"), ("e", "r"), ("Ġ", "w"), ("o", "u"), ("in", "g"), ("a", "t"), ("e", "s"),
              ("Ġ", "c"), ("o", "r"), ("e", "n"), ("i", "s"), ("Ġ", "o"), ("a", "n"), ("Ġ", "y"),
              ("Ġy", "ou"), ("l", "l"), ("e", "d"), ("Ġo", "f"), ("an", "d")]
    vocab = {t: i for i, t in enumerate(SPECIAL_TOKENS + ADDED_TOKENS)}
    for token in alphabet + [a + b for a, b in merges]:
        vocab.setdefault(token, len(vocab))
    assert len(vocab) == VOCAB_SIZE, len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED_TOKENS])
    return tokenizer, vocab, merges


def write_tokenizer(directory):
    tokenizer, _, _ = make_tokenizer()
    tokenizer.save(os.path.join(directory, "tokenizer.json"), pretty=False)
    write_json(os.path.join(directory, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "add_bos_token": False,
        "clean_up_tokenization_spaces": False, "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE})


def write_checkpoint(directory, config, weights, dtype, shards=1, transformers5=False):
    import torch
    from safetensors.torch import save_file

    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    write_json(os.path.join(directory, "config.json"), config_json(config, dtype, transformers5))
    write_json(os.path.join(directory, "generation_config.json"), {
        "bos_token_id": BOS_ID, "eos_token_id": config["eos_token_id"], "do_sample": True,
        "temperature": 0.6, "top_p": 0.95})
    write_tokenizer(directory)
    tensors = {k: torch.from_numpy(v).to(getattr(torch, dtype)).contiguous() for k, v in weights.items()}
    if shards == 1:
        save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = names[s * len(names) // shards:(s + 1) * len(names) // shards]
        save_file({k: tensors[k] for k in part}, os.path.join(directory, file), metadata={"format": "pt"})
        weight_map.update({k: file for k in part})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(os.path.join(directory, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": weight_map})
