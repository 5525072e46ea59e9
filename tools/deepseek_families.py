"""Tiny DeepSeek and Qwen3-MoE models: configs, and recipes (see recipes.py) of their checkpoints."""

import math

import recipes

YARN = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 256, "beta_fast": 32, "beta_slow": 1,
        "mscale": 1.0, "mscale_all_dim": 1.0}

TINY_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 1024,
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 3,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_attention_heads": 8, "num_key_value_heads": 8,
    "q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32,
    "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
    "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1, "max_position_embeddings": 1024, "rope_theta": 10000, "rope_scaling": YARN,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

TINY_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 1024,
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128, "num_hidden_layers": 3,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    "q_lora_rank": None, "kv_lora_rank": 128, "qk_nope_head_dim": 48, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 16, "n_shared_experts": 2, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1,
    "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    "max_position_embeddings": 1024, "rope_theta": 10000,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}

TINY_QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 1024,
    "hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_experts": 16,
    "num_experts_per_tok": 4, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [1],
    "max_position_embeddings": 1024, "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "use_sliding_window": False,
    "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}

# name -> (config, dtype of matrices, container)
FAMILIES = {
    # every structural feature of the 671B model: FP8 with partial blocks, groups, MTP, active YaRN
    "tiny-v3-fp8": ({**TINY_V3, "quantization_config": FP8}, "F8_E4M3", "hf"),
    "tiny-v3-bf16": (TINY_V3, "BF16", "hf"),
    # cos and sin have a factor of their own
    "tiny-v3-mscale": ({**TINY_V3, "rope_scaling": {**YARN, "mscale_all_dim": 0.5}, "torch_dtype": "float32"},
                       "F32", "hf"),
    # choosing within two of eight groups of two
    "tiny-v3-groups": ({**TINY_V3, "n_group": 8, "topk_group": 2, "torch_dtype": "float32"}, "F32", "hf"),
    # 16k of context over 4k of training, a prompt of 8k
    "tiny-v3-long": ({**TINY_V3, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
                      "max_position_embeddings": 16384, "num_nextn_predict_layers": 0,
                      "rope_scaling": {**YARN, "original_max_position_embeddings": 4096}}, "BF16", "hf"),
    # plain q projection, softmax router, two shared experts
    "tiny-v2": ({**TINY_V2, "torch_dtype": "float32"}, "F32", "hf"),
    "tiny-v2-bf16": (TINY_V2, "BF16", "hf"),
    "tiny-v2-group": ({**TINY_V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
                       "routed_scaling_factor": 16.0, "q_lora_rank": 96}, "BF16", "hf"),
    "tiny-qwen3-moe": (TINY_QWEN3_MOE, "BF16", "hf"),
    # GGUF: both generations of deepseek2, mixed formats as quantisers write them
    "tiny-v3-new-q8_0": ({**TINY_V3, "num_nextn_predict_layers": 0}, "Q8_0", "gguf-new"),
    "tiny-v3-new-q4_k": ({**TINY_V3, "num_nextn_predict_layers": 0}, "Q4_K", "gguf-new"),
    "tiny-v2-old-f16": (TINY_V2, "F16", "gguf-old"),
    "tiny-qwen3-moe-q8_0": ({**TINY_QWEN3_MOE, "mlp_only_layers": []}, "Q8_0", "gguf-new"),
}


def is_moe(c, layer):
    if c["model_type"] == "qwen3_moe":
        return layer not in c["mlp_only_layers"]
    return layer >= c["first_k_dense_replace"]


def logical_tensors(c):
    """(Hugging Face name, shape, gain or None for a norm, quantised in FP8 checkpoints), experts one by one."""
    hidden = c["hidden_size"]

    def ffn(prefix, width, gain=1.0):
        yield prefix + "gate_proj.weight", (width, hidden), 1.5, True
        yield prefix + "up_proj.weight", (width, hidden), 1.5, True
        yield prefix + "down_proj.weight", (hidden, width), gain, True

    def mla(p):
        n, nope, rope, dv = (c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim",
                                            "v_head_dim"))
        if c["q_lora_rank"] is None:
            yield p + "q_proj.weight", (n * (nope + rope), hidden), 1.4, True
        else:
            yield p + "q_a_proj.weight", (c["q_lora_rank"], hidden), 1.0, True
            yield p + "q_a_layernorm.weight", (c["q_lora_rank"],), None, False
            yield p + "q_b_proj.weight", (n * (nope + rope), c["q_lora_rank"]), 1.4, True
        yield p + "kv_a_proj_with_mqa.weight", (c["kv_lora_rank"] + rope, hidden), 1.4, True
        yield p + "kv_a_layernorm.weight", (c["kv_lora_rank"],), None, False
        yield p + "kv_b_proj.weight", (n * (nope + dv), c["kv_lora_rank"]), 1.2, True
        yield p + "o_proj.weight", (hidden, n * dv), 1.0, True

    def gqa(p):
        d = c["head_dim"]
        for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads")):
            yield p + name + "_proj.weight", (c[heads] * d, hidden), 1.0, True
        yield p + "q_norm.weight", (d,), None, False
        yield p + "k_norm.weight", (d,), None, False
        yield p + "o_proj.weight", (hidden, c["num_attention_heads"] * d), 1.0, True

    def layer(index, moe):
        p = f"model.layers.{index}."
        yield p + "input_layernorm.weight", (hidden,), None, False
        yield from (gqa if c["model_type"] == "qwen3_moe" else mla)(p + "self_attn.")
        yield p + "post_attention_layernorm.weight", (hidden,), None, False
        if not moe:
            yield from ffn(p + "mlp.", c["intermediate_size"])
            return
        experts = c.get("n_routed_experts") or c["num_experts"]
        yield p + "mlp.gate.weight", (experts, hidden), 1.5, False
        if c.get("topk_method") == "noaux_tc":
            yield p + "mlp.gate.e_score_correction_bias", (experts,), None, False
        # The weights of the chosen experts sum to about 2.5, 0.4, 6 or 1.
        gain = {2.5: 0.6, 16.0: 0.3}.get(c.get("routed_scaling_factor"), 1.0)
        for e in range(experts):
            yield from ffn(p + f"mlp.experts.{e}.", c["moe_intermediate_size"], gain)
        if c.get("n_shared_experts"):
            yield from ffn(p + "mlp.shared_experts.", c["n_shared_experts"] * c["moe_intermediate_size"])

    yield "model.embed_tokens.weight", (c["vocab_size"], hidden), math.sqrt(hidden), False
    layers = c["num_hidden_layers"]
    for index in range(layers):
        yield from layer(index, is_moe(c, index))
    yield "model.norm.weight", (hidden,), None, False
    yield "lm_head.weight", (c["vocab_size"], hidden), 4.0, False
    if c.get("num_nextn_predict_layers"):
        p = f"model.layers.{layers}."
        yield from layer(layers, True)
        yield p + "enorm.weight", (hidden,), None, False
        yield p + "hnorm.weight", (hidden,), None, False
        yield p + "eh_proj.weight", (hidden, 2 * hidden), 1.0, False
        yield p + "shared_head.norm.weight", (hidden,), None, False


def tensor(name, dtype, shape, gain):
    """One entry of a recipe; values have a standard deviation of gain / sqrt(columns)."""
    entry = {"name": name, "dtype": dtype, "shape": list(shape)}
    if gain is None:
        bias = name.endswith("_bias") or name.endswith(".bias")
        return {**entry, "amplitude": 0.15 if bias else 0.35, "centre": 0.0 if bias else 1.0}
    std = gain / math.sqrt(shape[-1])
    if dtype in recipes.BLOCKS:
        return {**entry, "scale": recipes.block_scale(dtype, std / recipes.unit_std(dtype))}
    if dtype == "F8_E4M3":
        return entry
    return {**entry, "amplitude": round(std * math.sqrt(3.0), 9)}


def hf_recipe(c, dtype, seed):
    tensors = []
    for name, shape, gain, quantised in logical_tensors(c):
        if gain is None:
            # Norms are BF16 in the released checkpoints, the router's bias float32.
            small = "F32" if name.endswith("_bias") or dtype == "F32" else "BF16"
            tensors.append(tensor(name, small, shape, None))
        elif dtype == "F8_E4M3" and quantised:
            tensors.append(tensor(name, dtype, shape, gain))
            scale = gain / math.sqrt(shape[1]) / recipes.UNIT_STD[dtype]
            tensors.append({"name": name + "_scale_inv", "dtype": "F32",
                            "shape": [-(-shape[0] // 128), -(-shape[1] // 128)],
                            "centre": round(scale, 9), "amplitude": round(0.5 * scale, 9)})
        else:
            tensors.append(tensor(name, "BF16" if dtype == "F8_E4M3" else dtype, shape, gain))
    return {"container": "safetensors", "seed": seed, "config": c, "tensors": tensors}


GGUF_PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output", "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp",
}


def block_type(dtype, columns, down):
    """What a quantiser stores: Q6_K where Q4_K files spend more bits, Q8_0 where rows are too short."""
    if dtype == "Q4_K" and columns % 256:
        return "Q8_0"
    return "Q6_K" if dtype == "Q4_K" and down else dtype


def gguf_recipe(c, dtype, generation, seed):
    """Tensors have GGUF names and `shape` outermost first; experts are stacked."""
    new = generation == "gguf-new"
    tensors, parts = [], {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, shape, gain, _ in logical_tensors(c):
        stem = name.rsplit(".", 1)[0]
        if stem in parts:
            tensors.append(tensor(parts[stem] + ".weight", "F32" if gain is None else block_type(dtype, shape[-1], False),
                                  shape, gain))
            continue
        _, _, index, part = stem.split(".", 3)
        p = f"blk.{index}."
        if name.endswith("e_score_correction_bias"):
            tensors.append(tensor(p + "exp_probs_b.bias", "F32", shape, None))
        elif part.startswith("mlp.experts."):
            _, _, expert, kind = part.split(".")
            if expert == "0":
                experts = c.get("n_routed_experts") or c["num_experts"]
                tensors.append(tensor(f"{p}ffn_{kind[:-5]}_exps.weight", block_type(dtype, shape[-1], kind == "down_proj"),
                                      (experts, *shape), gain))
        elif part == "self_attn.kv_b_proj" and new:
            n, nope, dv, rank = (c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank"))
            # attn_k_b is transposed, so its columns are too few for most block formats.
            k_type = "F16" if nope % 32 else ("Q8_0" if dtype in recipes.BLOCKS else dtype)
            k_gain = gain * math.sqrt(nope / rank)
            tensors.append(tensor(p + "attn_k_b.weight", k_type, (n, rank, nope), k_gain))
            tensors.append(tensor(p + "attn_v_b.weight", block_type(dtype, rank, False), (n, dv, rank), gain))
        else:
            f32 = gain is None or part == "mlp.gate"
            tensors.append(tensor(f"{p}{GGUF_PARTS[part]}.weight",
                                  "F32" if f32 else block_type(dtype, shape[-1], part.endswith("down_proj")), shape, gain))
    return {"container": "gguf", "seed": seed, "metadata": gguf_metadata(c, new), "tensors": tensors}


def gguf_metadata(c, new):
    """[key, type, value]"""
    moe_only = c["model_type"] == "qwen3_moe"
    arch = "qwen3moe" if moe_only else "deepseek2"
    u32 = {"context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"],
           "block_count": c["num_hidden_layers"], "feed_forward_length": c["intermediate_size"],
           "vocab_size": c["vocab_size"], "attention.head_count": c["num_attention_heads"],
           "expert_feed_forward_length": c["moe_intermediate_size"],
           "expert_count": c.get("n_routed_experts") or c["num_experts"],
           "expert_used_count": c["num_experts_per_tok"]}
    f32 = {"attention.layer_norm_rms_epsilon": c["rms_norm_eps"], "rope.freq_base": c["rope_theta"]}
    out = [["general.architecture", "string", arch], ["general.name", "string", "tiny"]]
    if moe_only:
        u32.update({"attention.head_count_kv": c["num_key_value_heads"], "attention.key_length": c["head_dim"],
                    "attention.value_length": c["head_dim"]})
    else:
        nope, rope, dv, rank = (c[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"))
        u32.update({"leading_dense_block_count": c["first_k_dense_replace"], "attention.kv_lora_rank": rank,
                    "expert_shared_count": c["n_shared_experts"], "rope.dimension_count": rope,
                    "rope.scaling.original_context_length": c["rope_scaling"]["original_max_position_embeddings"]})
        if c["q_lora_rank"]:
            u32["attention.q_lora_rank"] = c["q_lora_rank"]
        if new:
            u32.update({"attention.head_count_kv": 1, "attention.key_length": rank + rope,
                        "attention.value_length": rank, "attention.key_length_mla": nope + rope,
                        "attention.value_length_mla": dv, "expert_group_count": c["n_group"],
                        "expert_group_used_count": c["topk_group"]})
        else:
            u32.update({"attention.head_count_kv": c["num_key_value_heads"], "attention.key_length": nope + rope,
                        "attention.value_length": dv})
        if new:  # older files do not name the gating function
            u32["expert_gating_func"] = 2 if c["scoring_func"] == "sigmoid" else 1
        f32.update({"expert_weights_scale": c["routed_scaling_factor"],
                    "rope.scaling.factor": c["rope_scaling"]["factor"],
                    "rope.scaling.yarn_log_multiplier": 0.1 * c["rope_scaling"]["mscale_all_dim"]})
        out += [[f"{arch}.expert_weights_norm", "bool", c["norm_topk_prob"]],
                [f"{arch}.rope.scaling.type", "string", "yarn"]]
    out += [[f"{arch}.{k}", "u32", v] for k, v in u32.items()]
    out += [[f"{arch}.{k}", "f32", float(v)] for k, v in f32.items()]
    return out
