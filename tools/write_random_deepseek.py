#!/usr/bin/env python3
"""Streams a checkpoint of a DeepSeek or Qwen3-MoE model's shape with random weights, for measuring speed.

    python3 -m venv .venv && .venv/bin/pip install numpy==2.4.6 gguf==0.19.0
    .venv/bin/python tools/write_random_deepseek.py --preset deepseek-v2-lite --type fp8 models/v2-lite-fp8
    .venv/bin/python tools/write_random_deepseek.py --preset deepseek-v2-lite --type q8_0 \
        --vocabulary SmolLM2-135M-Instruct.Q4_1.gguf models/v2-lite-q8_0.gguf

fp8 and bf16 are Hugging Face directories (block FP8 as DeepSeek-V3 stores it, shards of 4 GiB, a small
byte-level tokenizer); q8_0 and q4_k are GGUF files of the newer deepseek2 layout (attn_k_b, attn_v_b).
Speed depends on shapes, formats and on how tokens spread over the experts; random routers spread them
evenly, as the trained ones aim to. Nothing is held in memory but the tensor being written.

Where the whole model is too large for the machine, --layers N keeps the first N layers and --experts N
that many experts of a layer (a token still goes through as many). llama.cpp takes a deepseek2 file
without q_lora for V2-Lite only if it has 27 layers.

A random multi-token prediction layer never guesses right, which is the worst case for speculation. With
--predictable (fp8, bf16) it mostly does: all layers change their input little, so the next token follows
mostly from the last one, and the prediction layer passes the embedding of its token on. Shapes, formats
and thus times are the same; the share of drafts that hold is no figure of any trained model.
"""

import argparse
import json
import math
import os
import sys
import time

import gguf
import numpy as np

import recipes
from deepseek_families import gguf_recipe, hf_recipe
from write_random_gguf import QT, random_blocks, random_tensor, vocabulary

YARN_40 = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400,
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
    "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    "max_position_embeddings": 163840, "rope_theta": 10000,
    "rope_scaling": {**YARN_40, "mscale": 0.707, "mscale_all_dim": 0.707}, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": 0,
    "eos_token_id": 1, "torch_dtype": "bfloat16"}
PRESETS = {
    "deepseek-v2-lite": V2_LITE,
    # V3's structure (sigmoid router, groups, q_lora, MTP) with the width of V2-Lite
    "deepseek-v3-lite": {
        **V2_LITE, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "q_lora_rank": 768,
        "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
        "rope_scaling": {**YARN_40, "mscale": 1.0, "mscale_all_dim": 1.0}},
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
SHARD_BYTES = 4 << 30
STEP_BYTES = 64 << 20
LAYER_GAIN = 0.05  # of --predictable
GGUF_FILE_TYPES = {"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "q4_k": gguf.LlamaFileType.MOSTLY_Q4_K_S}


def make_predictable(tensors):
    for t in tensors:
        name = t["name"].removesuffix("_scale_inv")
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            for key in ("amplitude", "centre"):
                if key in t:
                    t[key] *= LAYER_GAIN
        # Weights of one: what the two layers' last norms do to an embedding is then the same.
        if name.endswith(("enorm.weight", "shared_head.norm.weight", "model.norm.weight")):
            t["amplitude"] = 0.0
        if name.endswith("eh_proj.weight"):
            t["identity"] = True


def identity(tensor):
    """One to one from the first half of the columns; BF16."""
    rows, columns = tensor["shape"]
    values = np.zeros((rows, columns), "<u2")
    values[np.arange(rows), np.arange(rows)] = 0x3F80
    return values.tobytes()


def pieces(rng, tensor):
    """The tensor's bytes, some tens of megabytes at a time."""
    dtype, count = tensor["dtype"], math.prod(tensor["shape"])
    if tensor.get("identity"):
        yield identity(tensor)
        return
    if len(tensor["shape"]) == 1 or tensor["name"].endswith("_scale_inv"):
        yield recipes.raw_bytes(int(rng.integers(1 << 62)), tensor)
        return
    for start in range(0, count, STEP_BYTES):
        n = min(STEP_BYTES, count - start)
        if dtype == "F8_E4M3":
            codes = np.frombuffer(rng.bytes(n), np.uint8).copy()
            codes[(codes & 0x7F) == 0x7F] -= 1
            yield codes.tobytes()
        else:
            std = tensor["amplitude"] / math.sqrt(3.0)
            yield random_blocks(rng, QT[dtype], n, std).tobytes()


def stored_bytes(tensor):
    size = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4}[tensor["dtype"]]
    return size * math.prod(tensor["shape"])


def write_directory(path, config, kind, seed, predictable):
    config = {**config, "quantization_config": FP8} if kind == "fp8" else config
    tensors = hf_recipe(config, "F8_E4M3" if kind == "fp8" else "BF16", seed)["tensors"]
    if predictable:
        make_predictable(tensors)
    shards, size = [[]], 0
    for t in tensors:
        if size + stored_bytes(t) > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(t)
        size += stored_bytes(t)
    os.makedirs(path, exist_ok=True)
    rng, weight_map = np.random.default_rng(seed), {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        header, offset = {}, 0
        for t in shard:
            weight_map[t["name"]] = file
            header[t["name"]] = {"dtype": t["dtype"], "shape": t["shape"],
                                 "data_offsets": [offset, offset + stored_bytes(t)]}
            offset += stored_bytes(t)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(path, file), "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for t in shard:
                for piece in pieces(rng, t):
                    f.write(piece)
    total = sum(stored_bytes(t) for t in tensors)
    for name, value in (("config.json", config), ("tokenizer.json", byte_tokenizer()),
                        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast",
                                                   "bos_token": "<|endoftext|>", "eos_token": "<|im_start|>"}),
                        ("model.safetensors.index.json",
                         {"metadata": {"total_size": total}, "weight_map": weight_map})):
        with open(os.path.join(path, name), "w", encoding="utf-8") as f:
            json.dump(value, f)
    return total


def byte_tokenizer():
    tokens, types, merges, _, _, _ = vocabulary(None, 263)
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, t in enumerate(tokens) if types[i] == 3],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}}


def write_gguf(path, config, kind, vocabulary_path, seed):
    config = {**config, "num_nextn_predict_layers": 0}
    recipe = gguf_recipe(config, kind.upper(), "gguf-new", seed)
    arch = recipe["metadata"][0][2]
    w = gguf.GGUFWriter(path, arch)
    adders = {"u32": w.add_uint32, "f32": w.add_float32, "bool": w.add_bool, "string": w.add_string}
    for key, kind_of, value in recipe["metadata"][1:]:
        adders[kind_of](key, value)
    w.add_file_type(GGUF_FILE_TYPES[kind])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tokens, types, merges, pre, ids, template = vocabulary(vocabulary_path, config["vocab_size"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_bos_token_id(ids["bos"])
    w.add_eos_token_id(ids["eos"])
    w.add_add_bos_token(False)
    if template:
        w.add_chat_template(template)
    total = 0
    for t in recipe["tensors"]:
        block, block_bytes = gguf.GGML_QUANT_SIZES[QT[t["dtype"]]]
        size = math.prod(t["shape"]) // block * block_bytes
        total += size
        shape = t["shape"] if block == 1 else (*t["shape"][:-1], t["shape"][-1] // block * block_bytes)
        w.add_tensor_info(t["name"], shape, np.dtype(np.float32 if block == 1 else np.uint8), size,
                          raw_dtype=QT[t["dtype"]])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for number, t in enumerate(recipe["tensors"]):
        if len(t["shape"]) == 1:
            data = np.frombuffer(recipes.raw_bytes(seed, t), np.float32)
        else:
            rows = math.prod(t["shape"][:-1])
            std = (t["scale"][0] * recipes.unit_std(t["dtype"]) if "scale" in t
                   else t["amplitude"] / math.sqrt(3.0))
            data = random_tensor([seed, number], QT[t["dtype"]], rows, t["shape"][-1], std)
        w.write_tensor_data(data)
    w.close()
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="the directory (fp8, bf16) or .gguf file (q8_0, q4_k) to write")
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--preset", choices=sorted(PRESETS))
    shape.add_argument("--config", metavar="FILE", help="a Hugging Face config.json")
    parser.add_argument("--type", choices=("fp8", "bf16", "q8_0", "q4_k"), required=True)
    parser.add_argument("--layers", type=int, metavar="N", help="only the first N layers")
    parser.add_argument("--experts", type=int, metavar="N", help="N routed experts a layer")
    parser.add_argument("--predictable", action="store_true", help="a prediction layer that guesses well (fp8, bf16)")
    parser.add_argument("--vocabulary", metavar="GGUF", help="take the tokenizer of this file (q8_0, q4_k)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.preset:
        config = dict(PRESETS[args.preset])
    else:
        with open(args.config, encoding="utf-8") as f:
            config = json.load(f)
    if args.layers:
        if not 1 <= args.layers <= config["num_hidden_layers"]:
            sys.exit(f"--layers {args.layers}: the model has {config['num_hidden_layers']}")
        config["num_hidden_layers"] = args.layers
    if args.experts:
        if not config["num_experts_per_tok"] <= args.experts:
            sys.exit(f"--experts {args.experts}: a token needs {config['num_experts_per_tok']}")
        config["n_routed_experts" if "n_routed_experts" in config else "num_experts"] = args.experts
    if args.predictable and args.type not in ("fp8", "bf16"):
        sys.exit("--predictable: GGUF files here have no prediction layer; use --type fp8 or bf16")
    start = time.time()
    if args.type in ("fp8", "bf16"):
        total = write_directory(args.output, config, args.type, args.seed, args.predictable)
    else:
        total = write_gguf(args.output, config, args.type, args.vocabulary, args.seed)
    print(f"{args.output}: {total / 1e9:.3f} GB in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
