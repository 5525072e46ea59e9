#!/usr/bin/env python3
"""Writes seed inputs and dictionaries for the fuzz targets: make_seeds.py OUTPUT_DIR.

Seeds are made from the reference data in tests/testdata, cut down to what a parser sees: file headers
without weights, vocabularies of some dozen tokens. Dictionaries are the words that the sources
themselves compare with, so that a new key is tried without anybody adding it here.

Nothing but Python's standard library is used; the same sources give the same files.
"""

import json
import re
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "testdata"

# GGUF value types, from the format's description.
U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
# ggml tensor types: number, values per block, bytes per block.
TENSOR_F32, TENSOR_Q4_0, TENSOR_Q8_0, TENSOR_Q6_K = (0, 1, 4), (2, 32, 18), (8, 32, 34), (14, 256, 210)


def gguf_string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value):
    """Type number and bytes of a metadata value."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return U32, struct.pack("<I", value & 0xFFFFFFFF)
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, gguf_string(value)
    kind = gguf_value(value[0])[0]
    return ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(gguf_value(v)[1] for v in value)


def gguf_file(metadata, tensors, version=3, alignment=32):
    """A whole file; tensors are (name, shape, type), their bytes a repeated pattern."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, raw = gguf_value(value)
        out += gguf_string(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, shape, (number, per_block, block_bytes) in tensors:
        values = 1
        for size in shape:
            values *= size
        data += b"\0" * (-len(data) % alignment)
        out += gguf_string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", number, len(data))
        data += (struct.pack("<f", 1.5) * (values // per_block * block_bytes))[: values // per_block * block_bytes]
    return out + b"\0" * (-len(out) % alignment) + data


def small_vocabulary(name, size):
    """The first tokens of a reference vocabulary, the merges among them, and its special tokens."""
    source = json.loads((DATA / "text" / "tokenizers" / name / "gguf.json").read_text())
    kinds = source["token_types"]
    keep = [i for i, kind in enumerate(kinds) if i < size or kind != 1][: size + 4]
    tokens = [source["tokens"][i] for i in keep]
    known = set(tokens)
    merges = [m for m in source["merges"] if m.replace(" ", "") in known and set(m.split(" ")) <= known]
    ids = {key: keep.index(source[key]) for key in ("bos_id", "eos_id") if source.get(key, -1) in keep}
    metadata = {
        "tokenizer.ggml.model": source["model"],
        "tokenizer.ggml.pre": source["pre"],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds[i] for i in keep],
        "tokenizer.ggml.merges": merges or ["a b"],
    }
    for key, id_ in ids.items():
        metadata[f"tokenizer.ggml.{key[:3]}_token_id"] = id_
    return metadata


def gguf_seeds():
    template = (DATA / "text" / "templates" / "chatml.jinja").read_text()
    vocabularies = ["llama3", "qwen2", "smollm", "deepseek_v3", "deepseek_llm", "gpt2"]
    for i, architecture in enumerate(["llama", "qwen2", "qwen3", "deepseek2"] * 2):
        a = architecture + "."
        vocabulary = small_vocabulary(vocabularies[i % len(vocabularies)], 24 + 300 * (i // 4))
        rows = len(vocabulary["tokenizer.ggml.tokens"])
        metadata = {
            "general.architecture": architecture,
            "general.alignment": 32,
            a + "embedding_length": 32,
            a + "feed_forward_length": [64, 64],
            a + "block_count": 2,
            a + "attention.head_count": 4,
            a + "attention.head_count_kv": 2,
            a + "attention.key_length": 8,
            a + "attention.value_length": 8,
            a + "attention.layer_norm_rms_epsilon": 1e-5,
            a + "context_length": 512,
            a + "rope.dimension_count": 8,
            a + "rope.freq_base": 10000.0,
            a + "vocab_size": rows,
        } | vocabulary
        if i % 4 == 3:
            metadata |= {
                a + "rope.scaling.type": "yarn",
                a + "rope.scaling.factor": 40.0,
                a + "rope.scaling.original_context_length": 4096,
                a + "rope.scaling.yarn_log_multiplier": 0.1,
                a + "attention.q_lora_rank": 16,
                a + "attention.kv_lora_rank": 16,
                a + "leading_dense_block_count": 1,
                a + "expert_count": 4,
                a + "expert_used_count": 2,
                a + "expert_shared_count": 1,
                a + "expert_feed_forward_length": 16,
                a + "expert_weights_scale": 2.5,
                a + "expert_weights_norm": True,
                a + "expert_gating_func": 2,
            }
        if i % 2:
            metadata |= {
                "general.sampling.temp": 0.6,
                "general.sampling.top_p": 0.95,
                "general.sampling.top_k": 20,
                "tokenizer.ggml.add_bos_token": True,
                "tokenizer.ggml.eot_token_id": 2,
                "tokenizer.ggml.padding_token_id": 0xFFFFFFFF,
                "tokenizer.chat_template": template,
            }
        kinds = [TENSOR_F32, TENSOR_Q4_0, TENSOR_Q8_0]
        tensors = [
            ("token_embd.weight", [32, 2], kinds[i % 3]),
            ("blk.0.attn_q.weight", [256, 1], TENSOR_Q6_K),
            ("blk.1.ffn_down.weight", [64, 1], kinds[(i + 1) % 3]),
            ("output_norm.weight", [32], TENSOR_F32),
        ]
        if architecture == "llama":
            tensors.append(("rope_freqs.weight", [4], TENSOR_F32))
        yield f"{architecture}-{i}.gguf", gguf_file(metadata, tensors, version=3 if i % 3 else 2)


def safetensors_file(header, size):
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + b"\x3c" * size


def safetensors_seeds():
    widths = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4}
    for i, dtypes in enumerate([["F32", "BF16", "F16"], ["F8_E4M3", "F32"], ["I32", "BF16"]]):
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for j, dtype in enumerate(dtypes):
            shape = [j + 1, 4]
            end = offset + widths[dtype] * 4 * (j + 1)
            header[f"model.layers.{j}.mlp.up_proj.weight"] = {
                "dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        yield f"{i}.safetensors", safetensors_file(header, offset)
    for path in sorted((DATA / "model").glob("*/*.json")):
        if path.name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
            yield f"{path.parent.name}-{path.name}", path.read_bytes()


def chat_template_seeds():
    conversations = json.loads((DATA / "text" / "templates" / "conversations.json").read_text())
    for i, path in enumerate(sorted((DATA / "text" / "templates").glob("*.jinja"))):
        source = path.read_bytes()
        yield path.stem, source
        for j in range(i % 3, len(conversations), 3):
            yield f"{path.stem}-{j}", source + b"\0" + json.dumps(conversations[j]).encode()


def http_body_seeds():
    conversations = json.loads((DATA / "text" / "templates" / "conversations.json").read_text())
    for i, conversation in enumerate(conversations):
        yield f"conversation-{i}.json", json.dumps({"model": "fuzz", **conversation}).encode()
    yield "target", b"/v1/models/a%20b/?timeout=5&x=%zz&timeout=+1"


# Words between quotes in these sources make a target's dictionary.
WORDS = {
    "gguf_fuzz": ["src/model/gguf_*.cpp", "src/model/config_json.cpp", "src/text/gguf_pre_tokenizers.cpp"],
    "safetensors_fuzz": ["src/model/*.cpp", "src/tensor/dtype.h"],
    "http_body_fuzz": ["src/server/*_request.cpp", "src/server/chat_messages.cpp", "src/server/generation_call.cpp",
                       "src/server/json_fields.cpp"],
    "chat_template_fuzz": ["src/text/rust/src/*.rs"],
}
JINJA = ("{% %} {{ }} {%- -%} {# #} if elif else endif for in endfor recursive loop. break continue set endset macro "
         "endmacro call caller() endcall filter endfilter with endwith raw endraw block endblock extends include import "
         "generation endgeneration namespace( range( dict( cycler( joiner( is not defined none true false and or "
         "messages message role content tools tool_calls function arguments add_generation_prompt bos_token eos_token "
         "|tojson |trim |length |join |map( |select( |selectattr( |rejectattr( |sort |batch( |slice( |groupby( |unique "
         "|reverse |list |items |dictsort |default( |replace( |indent( |upper |int |float |round |first |last |format( "
         ".split( .strip( .startswith( .items() .get( .upper() .format( [::-1] [-1] [1:] ~ // ** ==").split()


def batch_message_seeds():
    """Two steps of two sequences: tables sent whole, then one page more (tests/fuzz/batch_message_fuzz.cpp)."""
    fresh, one_query, continues, appends, follows, same = 2, 4, 8, 32, 1, 16
    first = bytes([2,  # sequences
                   fresh | appends | continues, 0, 5, 10, 2,      # mirror 0, 5 queries, pages 5 and 6 as differences
                   fresh | appends | continues, 1, 4, 40,         # mirror 1, 4 queries, page 20
                   *range(9)])
    second = bytes([2, follows | one_query | continues | same, follows | one_query | continues | appends, 2, 7, 8])
    messages = [(1, 2, first), (1, 2, second), (2, 1 | 2 << 2, second)]
    yield "steps", b"".join(struct.pack("<HBB", len(m), kind, modes) + m for kind, modes, m in messages)


def dictionary(name):
    words = set()
    for pattern in WORDS.get(name, []):  # messages between ranks have no words
        for path in sorted(ROOT.glob(pattern)):
            words |= set(re.findall(r'"([A-Za-z_][A-Za-z0-9_.\-]{1,39})"', path.read_text()))
    if name == "chat_template_fuzz":
        words |= set(JINJA)
    if name == "gguf_fuzz":  # keys below an architecture are written without it in the sources
        words |= {f"llama.{w}" for w in words if "." in w and not w.startswith(("tokenizer", "general"))}
    lines = ['"' + w.replace("\\", "\\\\").replace('"', '\\"') + '"' for w in sorted(words)]
    return "\n".join(lines) + "\n"


def main():
    out = Path(sys.argv[1])
    for name, seeds in [("gguf_fuzz", gguf_seeds), ("safetensors_fuzz", safetensors_seeds),
                        ("http_body_fuzz", http_body_seeds), ("chat_template_fuzz", chat_template_seeds),
                        ("batch_message_fuzz", batch_message_seeds)]:
        (out / name).mkdir(parents=True, exist_ok=True)
        for file_name, content in seeds():
            (out / name / file_name).write_bytes(content)
        (out / f"{name}.dict").write_text(dictionary(name))


if __name__ == "__main__":
    main()
