"""Writes a checkpoint that thinks and answers: always the same thought, then always the same answer.

The tokenizer and template are those of tests/testdata/text/tokenizers/deepseek_v3. Attention and MLP are zero, so what
reaches the output matrix is the last token's embedding, and each row of the matrix is the sum of the embeddings after
which its token comes. Logits of scripted tokens lead by a hundred or more: sampling at any temperature follows the script.
"""

import array
import json
import pathlib
import random
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "tests/testdata/text/tokenizers/deepseek_v3"
HIDDEN, INTERMEDIATE, HEADS = 256, 64, 4
EOS, ASSISTANT = "<｜end▁of▁sentence｜>", "<｜Assistant｜>"

# Vocabulary entries, each at most once. In the thought: what looks like a closing tag, and a character in two tokens.
THOUGHT = ["Hello", "Ġworld", "<", "/", "th", "ing", ",", "Ã", "©"]
ANSWER = ["in", "Ġthe", "Hel", "lo", "Ġcaf", "div", "."]
THOUGHT_TEXT, ANSWER_TEXT = "Hello world</thing,é", "in theHello cafdiv."
# Up to and including the closing tag when the prompt has the opening one; all with padding and end of sequence.
REASONING_TOKENS = len(THOUGHT) + 1
COMPLETION_TOKENS = REASONING_TOKENS + 1 + len(ANSWER) + 1

# R1-0528: the model itself writes the opening tag.
UNFORCED_TEMPLATE = ("{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
                     "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}"
                     "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}")


def vocabulary():
    data = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    return {**data["model"]["vocab"], **{t["content"]: t["id"] for t in data["added_tokens"]}}


def matrices(ids):
    rng = random.Random(1)
    vocab = max(ids.values()) + 1
    embedding = [array.array("f", rng.choices((-1.0, 1.0), k=HIDDEN)) for _ in range(vocab)]
    head = [array.array("f", [0.0] * HIDDEN) for _ in range(vocab)]
    script = [ASSISTANT, "<think>", "Ċ", *THOUGHT, "</think>", "ĊĊ", *ANSWER, EOS]
    assert len(set(script)) == len(script)
    for before, after in zip(script, script[1:]):
        row = head[ids[after]]
        for i, value in enumerate(embedding[ids[before]]):
            row[i] += value

    def zeros(rows, columns):
        return [rows, columns], bytes(4 * rows * columns)

    def ones(size):
        return [size], array.array("f", [1.0] * size).tobytes()

    def rows(matrix):
        return [len(matrix), HIDDEN], b"".join(row.tobytes() for row in matrix)

    layer = "model.layers.0."
    return vocab, {
        "model.embed_tokens.weight": rows(embedding), "lm_head.weight": rows(head), "model.norm.weight": ones(HIDDEN),
        layer + "input_layernorm.weight": ones(HIDDEN), layer + "post_attention_layernorm.weight": ones(HIDDEN),
        **{layer + f"self_attn.{name}_proj.weight": zeros(HIDDEN, HIDDEN) for name in "qkvo"},
        layer + "mlp.gate_proj.weight": zeros(INTERMEDIATE, HIDDEN), layer + "mlp.up_proj.weight": zeros(INTERMEDIATE, HIDDEN),
        layer + "mlp.down_proj.weight": zeros(HIDDEN, INTERMEDIATE)}


def write(directory):
    """Fills `directory`; returns it."""
    directory = pathlib.Path(directory)
    ids = vocabulary()
    vocab, tensors = matrices(ids)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory / name)
    (directory / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "head_dim": HIDDEN // HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
        "bos_token_id": 0, "eos_token_id": 1}), encoding="utf-8")
    header, offset = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, data in tensors.values():
            file.write(data)
    return directory
