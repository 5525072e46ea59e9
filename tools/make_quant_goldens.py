#!/usr/bin/env python3
"""Writes tests/testdata/quant/*.bin with the `gguf` and `ml_dtypes` packages: what the C++ codecs
must reproduce.

    pip install -r tools/requirements-quant.txt
    python3 tools/make_quant_goldens.py

decode_TYPE.bin: u32 n, n blocks' bytes, then the float32 values they decode to.
encode_TYPE.bin: u32 n, n blocks of float32 values, then the bytes they encode to.
decode_F8_E4M3.bin, encode_F8_E4M3.bin: the same with blocks of one value; all 256 codes, and values
beyond +-448 saturating (ml_dtypes makes them NaN, so they are clamped first).
blocks_F8_E4M3.bin: u32 rows, u32 columns, codes, float32 scales of 128 x 128 blocks, the product.
"""

import pathlib

import gguf
import ml_dtypes
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "testdata" / "quant"
BLOCKS = 24
TYPES = gguf.GGMLQuantizationType

# Byte offsets of the float16 scales in a block.
SCALES = {
    TYPES.Q4_0: [0], TYPES.Q4_1: [0, 2], TYPES.Q5_0: [0], TYPES.Q5_1: [0, 2], TYPES.Q8_0: [0],
    TYPES.Q4_K: [0, 2], TYPES.Q5_K: [0, 2], TYPES.Q6_K: [208],
}
# Zero, the extremes, subnormals, one, and ordinary weights' scales of both signs.
HALVES = [0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0x1234, 0x9ABC]


def write(name, blocks, *parts):
    with open(OUT / name, "wb") as f:
        f.write(np.uint32(blocks).tobytes())
        for part in parts:
            f.write(np.ascontiguousarray(part).tobytes())


def decode_golden(rng, qtype):
    size = gguf.GGML_QUANT_SIZES[qtype][1]
    blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    blocks[0] = 0
    blocks[1] = 255
    for offset in SCALES[qtype]:
        for i in range(BLOCKS):
            half = HALVES[i % len(HALVES)] if i < 14 else int(rng.integers(0x0800, 0x4000))
            if offset == 2 and i < 14:
                half = HALVES[(3 * i + 5) % len(HALVES)]
            blocks[i, offset:offset + 2] = np.array([half], dtype="<u2").view(np.uint8)
    values = gguf.quants.dequantize(blocks, qtype)
    assert np.isfinite(values).all()
    write(f"decode_{qtype.name}.bin", BLOCKS, blocks, values.astype("<f4"))


def encode_golden(rng, qtype):
    x = rng.standard_normal((BLOCKS, 32)).astype(np.float32)
    x *= np.float32(10.0) ** rng.integers(-6, 5, (BLOCKS, 1)).astype(np.float32)
    x[0] = 0
    x[1] = 1.5                                     # all equal
    x[2, :] = 0
    x[2, 7] = -3.25                                # one value
    x[3] = np.arange(32) - 16                      # exact ties
    x[4] = (np.arange(32) - 16) * 0.5
    x[5] = np.where(np.arange(32) % 2, 2.0, -2.0)  # equal magnitudes of both signs
    x[6] = -np.abs(x[6])
    x[7] = np.abs(x[7])
    x[8] = 6e4 * np.sign(x[8])
    write(f"encode_{qtype.name}.bin", BLOCKS, x, gguf.quants.quantize(x, qtype))


def fp8_goldens(rng):
    fp8 = ml_dtypes.float8_e4m3fn
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(fp8).astype(np.float32)
    write("decode_F8_E4M3.bin", 256, codes, values)

    finite = values[:127].astype(np.float64)       # 0 .. 448 in order
    middles = (finite[1:] + finite[:-1]) / 2       # exact ties
    x = np.concatenate([
        finite, middles, np.nextafter(middles.astype(np.float32), np.float32(0)),
        np.nextafter(middles.astype(np.float32), np.float32(1e9)),
        [448.1, 463.9, 464, 480, 1e30, np.inf, 2.0**-10, np.nextafter(np.float32(2.0**-10), np.float32(1)),
         2.0**-11, 1e-30, 1e-40],
        np.exp(rng.uniform(np.log(2.0**-12), np.log(500), 1500)),
        rng.standard_normal(1500),
    ]).astype(np.float32)
    x = np.concatenate([x, -x])
    write("encode_F8_E4M3.bin", len(x), x,
          np.clip(x, -448, 448).astype(fp8).view(np.uint8))

    rows, columns = 150, 160                       # both with a partial second block
    codes = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x7E
    scales = np.exp(rng.uniform(-12, 3, (2, 2))).astype(np.float32)
    full = scales.repeat(128, 0).repeat(128, 1)[:rows, :columns]
    with open(OUT / "blocks_F8_E4M3.bin", "wb") as f:
        f.write(np.uint32([rows, columns]).tobytes())
        for part in (codes, scales, codes.view(fp8).astype(np.float32) * full):
            f.write(np.ascontiguousarray(part).tobytes())


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20240607)
    for qtype in SCALES:
        decode_golden(rng, qtype)
    for qtype in (TYPES.Q8_0, TYPES.Q4_0, TYPES.Q4_1):
        encode_golden(rng, qtype)
    fp8_goldens(rng)


if __name__ == "__main__":
    main()
