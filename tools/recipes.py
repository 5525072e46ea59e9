"""Recipes: checkpoints described by a few lines of JSON, filled by a counter-based generator.

A recipe names every tensor with dtype, shape and size of its values; the values follow from the
seed, the tensor's name and the element's index alone. So a checkpoint of tens of megabytes is
committed as a recipe of kilobytes: tools/make_deepseek_references.py fills it with numpy for the
reference, and tests/model/recipe.h fills it with the same bytes for the program under test.

Element i of a tensor is drawn from u = mix(mix(seed ^ fnv1a(name)) + i), mix being splitmix64:
    F32, F16, BF16   centre + step * s, s = the top 24 bits of u as a signed integer, step =
                     amplitude / 2^23, product and sum rounded to float32; BF16 keeps the upper half
                     of the bits, F16 rounds to nearest even
    F8_E4M3          the top byte of u, NaN codes replaced by the largest number
    Q8_0, Q4_K, Q6_K i counts bytes of blocks, each the top byte of u; the F16 scales of a block are
                     then set to the recipe's `scale`
"""

import json

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Rows and offsets of the F16 fields of a block, and the block's elements and bytes.
BLOCKS = {"Q8_0": (32, 34, (0,)), "Q4_K": (256, 144, (0, 2)), "Q6_K": (256, 210, (208,))}
# Standard deviation of a block element when its scale is 1 (F8: of a random code).
UNIT_STD = {"F8_E4M3": 107.2, "Q8_0": 73.9}


def mix(x):
    with np.errstate(over="ignore"):
        x = x + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def fnv1a(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def draws(seed, name, count):
    key = mix(np.uint64(seed ^ fnv1a(name)))
    with np.errstate(over="ignore"):
        return mix(key + np.arange(count, dtype=np.uint64))


def raw_bytes(seed, tensor):
    """The tensor as it lies in a file."""
    name, dtype, count = tensor["name"], tensor["dtype"], int(np.prod(tensor["shape"]))
    if dtype in BLOCKS:
        elems, size, scales = BLOCKS[dtype]
        blocks = (draws(seed, name, count // elems * size) >> np.uint64(56)).astype(np.uint8).reshape(-1, size)
        for offset, value in zip(scales, tensor["scale"], strict=True):
            blocks[:, offset:offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        return blocks.tobytes()
    u = draws(seed, name, count)
    if dtype == "F8_E4M3":
        codes = (u >> np.uint64(56)).astype(np.uint8)
        codes[(codes & 0x7F) == 0x7F] -= 1
        return codes.tobytes()
    signed = (u >> np.uint64(40)).astype(np.int64).astype(np.int32) - (1 << 23)
    step = np.float32(tensor["amplitude"] / (1 << 23))
    values = np.float32(tensor.get("centre", 0.0)) + step * signed.astype(np.float32)
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    if dtype == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
    raise ValueError(dtype)


def fp8_values():
    """The 256 codes of E4M3 (fn) as float32."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude = np.where((codes & 0x7F) == 0x7F, np.nan, magnitude)
    return np.where(codes >= 128, -magnitude, magnitude).astype(np.float32)


def values(seed, tensor):
    """The tensor's numbers in float32, FP8 without its block scales."""
    raw, shape, dtype = raw_bytes(seed, tensor), tensor["shape"], tensor["dtype"]
    if dtype == "F32":
        return np.frombuffer(raw, "<f4").reshape(shape)
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32).reshape(shape)
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype == "F8_E4M3":
        return fp8_values()[np.frombuffer(raw, np.uint8)].reshape(shape)
    import gguf

    blocks = np.frombuffer(raw, np.uint8).reshape(-1, BLOCKS[dtype][1])
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[dtype]).astype(np.float32).reshape(shape)


def scale_blocks(codes, scales):
    """FP8 numbers times their block scales, 128 x 128 each, the last ones partial."""
    rows, cols = codes.shape
    wide = np.repeat(np.repeat(scales, 128, axis=0), 128, axis=1)[:rows, :cols]
    return codes * wide


def unit_std(dtype):
    """Standard deviation of block elements with d = 1 (and dmin = 7.5 / 36 where there is one)."""
    if dtype not in UNIT_STD:
        probe = {"name": "probe", "dtype": dtype, "shape": [512, 256], "scale": block_scale(dtype, 1.0)}
        UNIT_STD[dtype] = float(values(1, probe).std())
    return UNIT_STD[dtype]


def block_scale(dtype, d):
    """d, and for Q4_K dmin: mins are as large as scales on average, so 7.5 d centres the values."""
    return [float(np.float16(d)), float(np.float16(7.5 * d))] if dtype == "Q4_K" else [float(np.float16(d))]


def self_check():
    """Hashes that tests/model/recipe_test.cpp expects of the same tensors."""
    for dtype, extra in (("F32", {"amplitude": 0.7, "centre": 1.0}), ("BF16", {"amplitude": 0.7}),
                         ("F16", {"amplitude": 0.3}), ("F8_E4M3", {}), ("Q8_0", {"scale": [0.01]}),
                         ("Q4_K", {"scale": [0.002, 0.015]}), ("Q6_K", {"scale": [0.001]})):
        tensor = {"name": "some.weight", "dtype": dtype, "shape": [3, 256], **extra}
        text = raw_bytes(3, tensor)
        h = 0xCBF29CE484222325
        for byte in text:
            h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
        print(json.dumps(tensor), hex(h))


if __name__ == "__main__":
    self_check()
