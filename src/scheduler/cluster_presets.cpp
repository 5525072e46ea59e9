// Figures of machines and of the 671B shape, with their sources.
#include "scheduler/cluster_cost.h"

namespace capstan::scheduler {

Result<Cluster> accelerator_cluster(const std::string& name, int nodes) {
  Cluster c;
  c.nodes = nodes;
  c.ranks_per_node = 8;
  // An 8B model decodes at 76% of an H100's bandwidth (158 tok/s, SGLang's documentation).
  constexpr double kReached = 0.76;
  double memory = 3.35e12, nvlink = 450e9;  // H100 SXM: data sheet; NVLink 4, one direction
  if (name == "h200") {
    memory = 4.8e12;  // data sheet
  } else if (name == "h800") {
    nvlink = 200e9;  // data sheet: 400 GB/s both directions
  } else if (name != "h100") {
    return invalid_argument("unknown accelerator '" + name + "'; there are h100, h200 and h800",
                            "hardware");
  }
  c.memory_bandwidth = memory * kReached;
  // 96 H100 prefill 50 to 58 thousand tokens per second and node of eight (LMSYS, 2025-05-05), with
  // the communication hidden: 54e3 / 8 * 7.4e10 operations.
  c.flops = 500e12;
  // Makes 8 H200 under SGLang 0.5.7 decode 8 streams in 12.8 ms (InferenceX).
  c.layer_overhead = 93e-6;
  // All-reduce of 8 H100 up to 32 KB: 5.7 to 7.8 us (SGLang, pull request 2904).
  c.inside = {6.7e-6, nvlink};
  // 400 Gb/s per rank. The latency makes 16 H100 with NCCL over InfiniBand decode one stream at
  // 43 tok/s (reported by a user of SGLang); it holds whatever the program did between.
  c.between = {kNcclBetweenNodes, 50e9};
  return c;
}

ModelWork deepseek_671b() {
  // Shape: models.md's table, that is the checkpoint's config.json.
  constexpr double kHidden = 7168, kHeads = 128, kQueryRank = 1536, kLatent = 512, kRope = 64;
  constexpr double kNope = 128, kValue = 128, kVocabulary = 129280;
  constexpr double kDenseWidth = 18432, kExpertWidth = 2048;
  ModelWork m;
  m.layers = 61;
  m.moe_layers = 58;
  m.hidden = kHidden;
  m.vocabulary = kVocabulary;
  // q_a_proj and kv_a_proj feed all heads.
  m.undivided_bytes = m.layers * kHidden * (kQueryRank + kLatent + kRope);
  m.attention_bytes = m.layers * (kQueryRank * kHeads * (kNope + kRope) +
                                  kLatent * kHeads * (kNope + kValue) + kHeads * kValue * kHidden);
  m.expert_bytes = 3 * kHidden * kExpertWidth;
  m.dense_bytes = (m.layers - m.moe_layers) * 3 * kHidden * kDenseWidth +
                  m.moe_layers * m.expert_bytes + 2 * kVocabulary * kHidden;  // head in BF16
  m.experts = 256;
  m.experts_per_token = 8;
  m.nodes_per_token = 4;  // topk_group, when groups are nodes
  m.kv_bytes = m.layers * (kLatent + kRope) * 2;
  const double active = m.undivided_bytes + m.attention_bytes + m.dense_bytes -
                        kVocabulary * kHidden +  // FP8 apart, a byte is a parameter
                        m.moe_layers * m.experts_per_token * m.expert_bytes;
  m.flops_per_token = 2 * active;
  // Absorbed form: a row of every head against latent and rope part, then the latent's values.
  m.flops_per_pair = 2 * m.layers * kHeads * (2 * kLatent + kRope);
  return m;
}

}  // namespace capstan::scheduler
