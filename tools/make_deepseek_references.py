#!/usr/bin/env python3
"""Writes recipes of tiny DeepSeek and Qwen3-MoE checkpoints and golden outputs for the model tests.

    python3 -m venv .venv && .venv/bin/pip install -r tools/requirements-reference.txt
    .venv/bin/python tools/make_deepseek_references.py tests/testdata/model/deepseek

The models are those of deepseek_families.py, some of them of tens of megabytes, so what is committed
is a recipe (see recipes.py) from which the tests write the checkpoint again, byte for byte. With
--checkpoints DIR the Hugging Face ones are written there as directories, for use by hand.

The oracle is Hugging Face transformers, eager attention, float32, on the stored weights widened
exactly (FP8: code times block scale in float32). MTP is computed with the model's own layer class;
the concatenation of embedding and hidden state and its norms are DeepSeek-V3's (technical report,
section 2.2; the embedding comes first in the released checkpoints).

Golden format: README.md in tests/testdata/model. Beyond it a case has
    experts        {layer: per prompt token the chosen experts, ascending}
    router_margin  smallest distance between the last expert (or group) chosen and the first not chosen
    mtp_positions, mtp_logits   row i: logits of the MTP layer at position p_i, for the token at p_i + 2
"""

import argparse
import json
import os
import shutil
import tempfile

import numpy as np

import recipes
from deepseek_families import FAMILIES, gguf_recipe, hf_recipe
from make_references import GoldenWriter, all_logits, greedy, load_reference

PROMPT, LONG_PROMPT, VERY_LONG_PROMPT = 48, 320, 8192
GREEDY = 64
DECODE_STEPS_KEPT = (1, 2, 3, 31, 63)
# The outcome of --search 8, where it is not 1. Run it again when a family changes.
SEEDS = {
    "tiny-v3-fp8": 7, "tiny-v3-bf16": 8, "tiny-v3-mscale": 2, "tiny-v3-groups": 4, "tiny-qwen3-moe":
    6, "tiny-v3-new-q4_k": 8, "tiny-v2-old-f16": 8,
}


# --- weights under Hugging Face names -------------------------------------------------------------


def widen(recipe):
    """Float32 weights under the names in the recipe, FP8 scaled, scales left out."""
    seed = recipe["seed"]
    named = {t["name"]: recipes.values(seed, t) for t in recipe["tensors"]}
    out = {}
    for name, w in named.items():
        if name.endswith("_scale_inv"):
            continue
        scales = named.get(name + "_scale_inv")
        out[name] = w if scales is None else recipes.scale_blocks(w, scales)
    return out


def from_gguf(weights, c):
    """GGUF names to Hugging Face ones; stacked experts one by one, attn_k_b and attn_v_b as kv_b."""
    from deepseek_families import GGUF_PARTS

    parts = {v: k for k, v in GGUF_PARTS.items()}
    top = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
           "output.weight": "lm_head.weight"}
    out = {}
    for name, w in weights.items():
        if name in top:
            out[top[name]] = w
            continue
        _, layer, part, _ = name.split(".")
        p = f"model.layers.{layer}."
        if part == "exp_probs_b":
            out[p + "mlp.gate.e_score_correction_bias"] = w
        elif part.endswith("_exps"):
            for e in range(w.shape[0]):
                out[p + f"mlp.experts.{e}.{part[4:-5]}_proj.weight"] = w[e]
        elif part == "attn_k_b":  # [heads, rank, nope]
            values = weights[f"blk.{layer}.attn_v_b.weight"]  # [heads, dv, rank]
            kv_b = np.concatenate([w.swapaxes(1, 2), values], axis=1)
            out[p + "self_attn.kv_b_proj.weight"] = kv_b.reshape(-1, c["kv_lora_rank"])
        elif part != "attn_v_b":
            out[p + parts[part] + ".weight"] = w
    return out


def reference(config, weights, work):
    import torch
    from safetensors.torch import save_file

    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    plain = {k: v for k, v in config.items() if k not in ("quantization_config", "num_nextn_predict_layers")}
    plain["num_nextn_predict_layers"] = 0
    with open(os.path.join(work, "config.json"), "w", encoding="utf-8") as f:
        json.dump({**plain, "torch_dtype": "float32"}, f)
    main = {k: torch.from_numpy(np.array(v)) for k, v in weights.items()
            if not k.startswith(f"model.layers.{config['num_hidden_layers']}.")}
    save_file(main, os.path.join(work, "model.safetensors"), metadata={"format": "pt"})
    model = load_reference(work)
    loaded = sum(p.numel() for p in model.parameters()) + sum(
        b.numel() for n, b in model.named_buffers() if n.endswith("correction_bias"))
    assert loaded == sum(t.numel() for t in main.values()), "the reference has other parameters"
    return model


# --- what else is recorded ------------------------------------------------------------------------


def router_record(model, config, ids):
    """Chosen experts per MoE layer, and the smallest margin of a choice."""
    import torch

    chosen, margins, hooks = {}, [], []

    def hook(layer):
        def record(module, args, output):
            logits, _, indices = output
            chosen[str(layer)] = np.sort(indices.numpy(), axis=1).tolist()
            score = logits.sigmoid() if config.get("scoring_func") == "sigmoid" else logits.softmax(-1)
            choice = score + getattr(module, "e_score_correction_bias", 0.0)
            groups = config.get("n_group", 1)
            if groups > 1:
                grouped = choice.view(len(choice), groups, -1)
                top = grouped.topk(2, -1)[0].sum(-1) if config["topk_method"] == "noaux_tc" else grouped.max(-1)[0]
                ranked = top.sort(-1, descending=True)
                kept = config["topk_group"]
                margins.append((ranked[0][:, kept - 1] - ranked[0][:, kept]).min().item())
                mask = torch.full_like(top, -1e9).scatter(1, ranked[1][:, :kept], 0.0)
                choice = (grouped + mask[:, :, None]).view(len(choice), -1)
            ranked = choice.sort(-1, descending=True)[0]
            k = config["num_experts_per_tok"]
            margins.append((ranked[:, k - 1] - ranked[:, k]).min().item())
        return record

    for index, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate") and hasattr(layer.mlp, "experts"):
            hooks.append(layer.mlp.gate.register_forward_hook(hook(index)))
    with torch.inference_mode():
        model(torch.tensor([ids]))
    for h in hooks:
        h.remove()
    return chosen, min(margins)


def mtp_logits(model, config, weights, ids):
    """Logits [len(ids) - 1, vocab]: row i sees the hidden state of position i and the token i + 1."""
    import torch
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    p = f"model.layers.{config['num_hidden_layers']}."
    own = {k[len(p):]: torch.from_numpy(np.array(v)) for k, v in weights.items() if k.startswith(p)}
    layer = v3.DeepseekV3DecoderLayer(model.config, config["num_hidden_layers"]).eval()
    state = {k: v for k, v in own.items()
             if not k.startswith(("enorm", "hnorm", "eh_proj", "shared_head", "mlp.experts"))}
    experts = config["n_routed_experts"]
    state["mlp.experts.gate_up_proj"] = torch.stack(
        [torch.cat([own[f"mlp.experts.{e}.{n}_proj.weight"] for n in ("gate", "up")]) for e in range(experts)])
    state["mlp.experts.down_proj"] = torch.stack([own[f"mlp.experts.{e}.down_proj.weight"] for e in range(experts)])
    layer.load_state_dict(state)

    def norm(name, x):
        module = v3.DeepseekV3RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
        module.weight.data = own[name]
        return module(x)

    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[:, :-1]  # after model.norm
        embedded = model.model.embed_tokens(torch.tensor([ids[1:]]))
        x = torch.cat([norm("enorm.weight", embedded), norm("hnorm.weight", hidden)], -1) @ own["eh_proj.weight"].T
        positions = torch.arange(x.shape[1])[None]
        mask = torch.full((x.shape[1],) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]
        x = layer(x, attention_mask=mask, position_ids=positions,
                  position_embeddings=model.model.rotary_emb(x, positions))
        x = x[0] if isinstance(x, tuple) else x
        return model.lm_head(norm("shared_head.norm.weight", x))[0].numpy().astype(np.float32)


# --- goldens --------------------------------------------------------------------------------------


def prompt_tokens(config, count, seed):
    return [int(t) for t in np.random.default_rng(seed).integers(2, config["vocab_size"], count)]


def prompts(name):
    yield "short", PROMPT, GREEDY
    yield "long", VERY_LONG_PROMPT if name == "tiny-v3-long" else LONG_PROMPT, 16


def quality(model, config, name):
    """Smallest logit margin along the greedy paths and of the router; -1 for a dull path."""
    margin, router = np.inf, np.inf
    for which, count, new in prompts(name):
        prompt = prompt_tokens(config, count, 1 if which == "short" else 2)
        tokens, _, margins = greedy(model, prompt, new)
        if len(set(tokens)) < new // 3 or config["eos_token_id"] in tokens:
            return -1.0, 0.0
        margin = min(margin, *margins)
        router = min(router, router_record(model, config, prompt + tokens)[1])
        if margin < 2e-3 or router < 2e-6:
            break
    return margin, router


def case(out, which, model, config, weights, count, new):
    prompt = prompt_tokens(config, count, 1 if which == "short" else 2)
    logits = all_logits(model, prompt)
    tokens, rows, margins = greedy(model, prompt, new)
    whole = all_logits(model, prompt + tokens[:-1])[count - 1:]
    assert np.abs(whole - np.stack(rows)).max() / np.abs(whole).max() < 2e-5
    positions = list(range(5, count, 6)) if which == "short" else [count // 2, count - 2, count - 1]
    steps = [s for s in DECODE_STEPS_KEPT if s < new]
    chosen, _ = router_record(model, config, prompt)
    _, router_margin = router_record(model, config, prompt + tokens)
    entry = {"prompt": prompt, "logit_positions": positions, "logits": out.tensor(logits[positions]),
             "greedy": tokens, "decode_steps": steps, "decode_logits": out.tensor(np.stack([rows[s] for s in steps])),
             "min_margin": min(margins), "router_margin": router_margin}
    if which == "short":
        entry["experts"] = chosen
        if config.get("num_nextn_predict_layers"):
            entry["mtp_positions"] = [0, 1, 16, 46]
            entry["mtp_logits"] = out.tensor(mtp_logits(model, config, weights, prompt)[entry["mtp_positions"]])
    out.doc.setdefault("cases", {})[which] = entry


def build(name, seed):
    config, dtype, container = FAMILIES[name]
    if container == "hf":
        recipe = hf_recipe(config, dtype, seed)
        return config, recipe, widen(recipe)
    recipe = gguf_recipe(config, dtype, container, seed)
    return config, recipe, from_gguf(widen(recipe), config)


def compact(value):
    """One line per tensor."""
    head = {k: v for k, v in value.items() if k != "tensors"}
    lines = ",\n  ".join(json.dumps(t) for t in value["tensors"])
    return json.dumps(head, indent=1)[:-2] + ',\n "tensors": [\n  ' + lines + "\n ]\n}\n"


def write_family(name, out_dir, seed, work):
    config, recipe, weights = build(name, seed)
    model = reference(config, weights, work)
    out = GoldenWriter()
    out.doc = {"description": f"{name}, seed {seed}", "vocab_size": config["vocab_size"]}
    for which, count, new in prompts(name):
        case(out, which, model, config, weights, count, new)
    directory = os.path.join(out_dir, name)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "recipe.json"), "w", encoding="utf-8") as f:
        f.write(compact(recipe))
    with open(os.path.join(directory, "golden.f32"), "wb") as f:
        f.write(b"".join(out.blob))
    with open(os.path.join(directory, "golden.json"), "w", encoding="utf-8") as f:
        json.dump(out.doc, f, separators=(",", ":"))
        f.write("\n")
    cases = out.doc["cases"].values()
    margin, router = min(c["min_margin"] for c in cases), min(c["router_margin"] for c in cases)
    print(f"{name}: seed {seed}, margin {margin:.4f}, router margin {router:.2e}", flush=True)


def write_checkpoint(name, directory, seed):
    """The bytes the tests write, by another hand (the safetensors package)."""
    from safetensors import serialize_file

    config, recipe, _ = build(name, seed)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=1)
    serialize_file({t["name"]: {"dtype": t["dtype"], "shape": t["shape"], "data": recipes.raw_bytes(seed, t)}
                    for t in recipe["tensors"]}, os.path.join(directory, "model.safetensors"), {"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir")
    parser.add_argument("--only", nargs="*", help="these families")
    parser.add_argument("--search", type=int, default=0, metavar="N",
                        help="try seeds 1..N and take the one with the widest margins")
    parser.add_argument("--checkpoints", metavar="DIR", help="write Hugging Face directories here too")
    args = parser.parse_args()

    import torch
    import transformers
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as work:
        for name in args.only or FAMILIES:
            seed = SEEDS.get(name, 1)
            if args.search:
                best = (-1.0, 1)
                for candidate in range(1, args.search + 1):
                    config, _, weights = build(name, candidate)
                    margin, router = quality(reference(config, weights, work), config, name)
                    # A router decision is as good as settled when its margin is 1e-5.
                    best = max(best, (min(margin, 1e3 * router), candidate))
                seed = best[1]
            write_family(name, args.out_dir, seed, work)
            if args.checkpoints and FAMILIES[name][2] == "hf":
                write_checkpoint(name, os.path.join(args.checkpoints, name), seed)


if __name__ == "__main__":
    main()
