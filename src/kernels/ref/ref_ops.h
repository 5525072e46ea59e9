// The scalar oracle: every operation as its formula reads, sums in double, one thread.
// Slow, and exact to the rounding of its float32 results; other kernels are tested against it.
#pragma once

#include "kernels/ops.h"

namespace capstan::kernels::ref {

/// Rows of args.table, decoded to float32.
void embed(const EmbedArgs& args);

/// y = x / sqrt(mean(x^2) + eps) * weight; mean in double, one rounding to float at the end.
void rms_norm(const RmsNormArgs& args);

/// Norms (mean in double), rotation in double, then stored; F16 saturates at +-65504.
void qkv_rope_store(const QkvArgs& args);

/// Dot products, softmax and weighted sum in double, two passes over the keys.
void attention(const AttentionArgs& args);

/// Latent norm (mean in double), rotations in double, then stored.
void mla_store(const MlaStoreArgs& args);

/// The naive form whatever args.form says: every key and value expanded, all sums in double.
void mla_attention(const MlaAttentionArgs& args);

/// What the definitions above are made of.
/// y = x / sqrt(mean(x^2) + eps) * weight, one row.
void normalise(const float* x, const float* weight, float eps, float* y, int64_t n);
void rotate(float* x, const float* cos, const float* sin, int rope_dim, RopeStyle style);
/// Encodes n elements; F16 saturates.
void store_row(DType dtype, const float* src, std::byte* dst, int n);

/// Scores and sums in double.
void route(const RouteArgs& args);

/// Largest finite F16; keys and values beyond it are stored as this, so that one outlier cannot
/// turn a whole attention row into NaN.
inline constexpr float kMaxHalf = 65504.0f;

}  // namespace capstan::kernels::ref
