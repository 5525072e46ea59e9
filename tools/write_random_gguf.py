#!/usr/bin/env python3
"""Streams a GGUF file of a real model's shape with random weights, for measuring speed.

    python3 -m venv .venv && .venv/bin/pip install numpy==2.4.6 gguf==0.19.0
    .venv/bin/python tools/write_random_gguf.py --preset r1-distill-qwen-1.5b --type q8_0 \
        --vocabulary SmolLM2-135M-Instruct.Q4_1.gguf models/r1-1.5b-q8_0.gguf

Speed depends on shapes and formats, not on what the weights say, so a file that takes seconds to
write stands in for one that takes an hour to download. The blocks are valid and their scales sane:
weights have mean 0 and a standard deviation near 1/sqrt(inputs), logits are finite. What the model
"says" is noise.

Shapes: --preset, or --config with a Hugging Face config.json (llama, qwen2 or qwen3).

Types, mixed as llama-quantize does:
    f16, bf16  every matrix
    q8_0       every matrix
    q4_0       every matrix, output matrix Q6_K
    q4_k       every matrix Q4_K, output matrix Q6_K (Q4_K_S without its few Q5_K tensors). A matrix
               whose rows are no multiple of 256 falls back to Q5_0, the output matrix to Q8_0
With tied embeddings token_embd is the output matrix as well and takes its type. Norms and biases
are F32.

The tokenizer is gpt2-style. With --vocabulary its tokens, merges and special ids come from that GGUF
file, padded to the model's size with tokens that no text is encoded to; without, it has the 256 bytes
and a handful of merges. Padding tokens decode to visible text ("<unused_7>"), so that a server that
streams text has something to send for each of them.
"""

import argparse
import json
import math
import os
import sys
import time

import gguf
import numpy as np

QT = gguf.GGMLQuantizationType

PRESETS = {
    "r1-distill-qwen-1.5b": {
        "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "tie_word_embeddings": False},
    "smollm2": {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": True},
}

# type -> (matrices, output matrix, file type of the metadata)
TYPES = {
    "f16": (QT.F16, QT.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (QT.BF16, QT.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (QT.Q8_0, QT.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (QT.Q4_0, QT.Q6_K, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q4_k": (QT.Q4_K, QT.Q6_K, gguf.LlamaFileType.MOSTLY_Q4_K_S),
}
FALLBACK = {QT.Q4_K: QT.Q5_0, QT.Q6_K: QT.Q8_0}


# --- random blocks ----------------------------------------------------------------------------


def half_scales(rng, count, value):
    """`count` F16 scales within 30% of `value`, as bytes [count, 2]."""
    scales = (value * rng.uniform(0.7, 1.3, count)).astype("<f2")
    return scales.view(np.uint8).reshape(count, 2)


def random_bytes(rng, rows, cols):
    return np.frombuffer(rng.bytes(rows * cols), dtype=np.uint8).reshape(rows, cols)


def pack_k_scales(scales, mins):
    """Eight 6-bit scales and mins per block [n, 8] into the 12 bytes of Q4_K."""
    out = np.empty((scales.shape[0], 12), dtype=np.uint8)
    out[:, 0:4] = scales[:, 0:4] | (scales[:, 4:8] >> 4) << 6
    out[:, 4:8] = mins[:, 0:4] | (mins[:, 4:8] >> 4) << 6
    out[:, 8:12] = (scales[:, 4:8] & 15) | (mins[:, 4:8] & 15) << 4
    return out


def random_blocks(rng, qtype, count, std):
    """`count` blocks as bytes; decoded values have mean 0 and a standard deviation near `std`."""
    if qtype in (QT.F16, QT.BF16, QT.F32):
        values = (rng.standard_normal(count, dtype=np.float32) * np.float32(std))
        if qtype == QT.F16:
            values = values.astype("<f2")
        if qtype == QT.BF16:
            values = (values.view(np.uint32) >> 16).astype("<u2")
        return values.view(np.uint8).reshape(count, -1)
    if qtype == QT.Q8_0:  # int8 in -128..127: std 73.9
        return np.hstack([half_scales(rng, count, std / 73.9), random_bytes(rng, count, 32)])
    if qtype == QT.Q4_0:  # nibble - 8 in -8..7: std 4.64
        return np.hstack([half_scales(rng, count, std / 4.64), random_bytes(rng, count, 16)])
    if qtype == QT.Q5_0:  # 5 bits - 16: std 9.25
        return np.hstack([half_scales(rng, count, std / 9.25), random_bytes(rng, count, 20)])
    if qtype == QT.Q4_K:  # d*sc*q - dmin*mn with mn = sc and dmin = 7.5 d centres the 4 bits; sc ~ 48
        scales = rng.integers(32, 64, (count, 8), dtype=np.uint8)
        d = half_scales(rng, count, std / (4.64 * 48))
        dmin = (d.reshape(-1).view("<f2") * np.float16(7.5)).view(np.uint8).reshape(count, 2)
        return np.hstack([d, dmin, pack_k_scales(scales, scales), random_bytes(rng, count, 128)])
    if qtype == QT.Q6_K:  # d*scale*(q - 32): std 18.5 * scale, scale ~ 80
        scales = rng.integers(33, 128, (count, 16), dtype=np.uint8)
        return np.hstack([random_bytes(rng, count, 192), scales, half_scales(rng, count, std / (18.5 * 80))])
    raise ValueError(qtype)


def random_tensor(seed, qtype, rows, cols, std):
    block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    row_bytes = cols // block * block_bytes
    out = np.empty((rows, row_bytes), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    step = max(1, (32 << 20) // row_bytes)  # 32 MiB at a time keeps the peak low
    for start in range(0, rows, step):
        part = min(step, rows - start)
        out[start:start + part] = random_blocks(rng, qtype, part * cols // block, std).reshape(part, row_bytes)
    return out


# --- the model --------------------------------------------------------------------------------


def tensors_of(config, matrix_type, output_type):
    """(name, type, shape, standard deviation or None for a norm of ones) in file order."""
    hidden, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q_size, kv_size = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    arch = config["model_type"]

    def matrix(name, rows, cols, gain=1.0, qtype=matrix_type):
        if cols % gguf.GGML_QUANT_SIZES[qtype][0]:
            qtype = FALLBACK.get(qtype)
            if qtype is None or cols % gguf.GGML_QUANT_SIZES[qtype][0]:
                sys.exit(f"{name}: rows of {cols} elements do not divide into blocks of this type")
        return name + ".weight", qtype, (rows, cols), gain / math.sqrt(cols)

    def norm(name, size):
        return name + ".weight", QT.F32, (size,), None

    tied = config.get("tie_word_embeddings", False)
    yield matrix("token_embd", vocab, hidden, math.sqrt(hidden) / 8, output_type if tied else matrix_type)
    for layer in range(config["num_hidden_layers"]):
        p = f"blk.{layer}."
        yield norm(p + "attn_norm", hidden)
        for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
            yield matrix(p + "attn_" + name, size, hidden)
            if arch == "qwen2":
                yield p + f"attn_{name}.bias", QT.F32, (size,), 0.1
        if arch == "qwen3":
            yield norm(p + "attn_q_norm", head_dim)
            yield norm(p + "attn_k_norm", head_dim)
        yield matrix(p + "attn_output", hidden, q_size, 0.3)
        yield norm(p + "ffn_norm", hidden)
        yield matrix(p + "ffn_gate", inter, hidden)
        yield matrix(p + "ffn_up", inter, hidden)
        yield matrix(p + "ffn_down", hidden, inter, 0.3)
    yield norm("output_norm", hidden)
    if not tied:
        yield matrix("output", vocab, hidden, 2.0, output_type)


def byte_alphabet():
    """The 256 printable stand-ins of byte-level BPE, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(extra)) for b in range(256)]


def vocabulary(path, size):
    """tokens, types, merges, pre-tokenizer name, ids {bos, eos, pad}, chat template (or None)."""
    if path:
        reader = gguf.GGUFReader(path)

        def field(key):
            f = reader.get_field("tokenizer." + key)
            return None if f is None else f.contents()

        tokens, types, merges = (field("ggml." + k) for k in ("tokens", "token_type", "merges"))
        if field("ggml.model") != "gpt2":
            sys.exit(f"{path}: tokenizer model {field('ggml.model')!r}, expected 'gpt2'")
        ids = {k: field(f"ggml.{name}_token_id") for k, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
        pre, template = field("ggml.pre"), field("chat_template")
    else:
        tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + byte_alphabet() + ["Ġt", "he", "Ġa", "in"]
        types = [3] * 3 + [1] * (len(tokens) - 3)
        merges, pre = ["Ġ t", "h e", "Ġ a", "i n"], "smollm"
        ids, template = {"bos": 0, "eos": 0, "pad": None}, None
    if len(tokens) > size:
        sys.exit(f"{path}: {len(tokens)} tokens do not fit a model with {size}")
    unused = [f"<unused_{i}>" for i in range(size - len(tokens))]
    return tokens + unused, types + [1] * len(unused), merges, pre, ids, template


def write(path, config, kind, vocabulary_path, seed, name):
    matrix_type, output_type, file_type = TYPES[kind]
    arch = config["model_type"]
    if arch not in ("llama", "qwen2", "qwen3"):
        sys.exit(f"model_type {arch!r} is not one of llama, qwen2, qwen3")
    if config.get("rope_scaling"):
        print("note: rope_scaling of the config is left out; it does not change the speed", file=sys.stderr)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    w = gguf.GGUFWriter(path, arch)
    w.add_name(name)
    w.add_file_type(file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config["rope_theta"])
    w.add_rope_dimension_count(head_dim)
    w.add_vocab_size(config["vocab_size"])
    tokens, types, merges, pre, ids, template = vocabulary(vocabulary_path, config["vocab_size"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_bos_token_id(ids["bos"])
    w.add_eos_token_id(ids["eos"])
    if ids["pad"] is not None:
        w.add_pad_token_id(ids["pad"])
    w.add_add_bos_token(False)
    if template:
        w.add_chat_template(template)

    tensors = list(tensors_of(config, matrix_type, output_type))
    total = 0
    for tensor, qtype, shape, _ in tensors:
        block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
        size = math.prod(shape) // block * block_bytes
        total += size
        # The gguf package takes the byte shape of quantised tensors and works out the element shape.
        if qtype in (QT.F32, QT.F16, QT.BF16):
            w.add_tensor_info(tensor, shape, np.dtype(np.float32), size, raw_dtype=qtype)
        else:
            byte_shape = (*shape[:-1], shape[-1] // block * block_bytes)
            w.add_tensor_info(tensor, byte_shape, np.dtype(np.uint8), size, raw_dtype=qtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    start = time.time()
    for number, (tensor, qtype, shape, std) in enumerate(tensors):
        if std is None:
            data = np.ones(shape, dtype=np.float32)
        else:
            rows, cols = shape if len(shape) == 2 else (1, shape[0])
            data = random_tensor([seed, number], qtype, rows, cols, std)
        w.write_tensor_data(data)
    w.close()
    print(f"{path}: {os.path.getsize(path) / 1e9:.3f} GB, {len(tensors)} tensors, {kind}, "
          f"{total / 1e6 / max(time.time() - start, 1e-9):.0f} MB/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="the .gguf file to write")
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--preset", choices=sorted(PRESETS))
    shape.add_argument("--config", metavar="FILE", help="a Hugging Face config.json")
    parser.add_argument("--type", choices=sorted(TYPES), required=True)
    parser.add_argument("--vocabulary", metavar="GGUF", help="take the tokenizer of this file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.preset:
        config, name = PRESETS[args.preset], f"{args.preset} random"
    else:
        with open(args.config, encoding="utf-8") as f:
            config = json.load(f)
        name = f"{config.get('model_type')} random"
    write(args.output, config, args.type, args.vocabulary, args.seed, name)


if __name__ == "__main__":
    main()
