#include "scheduler/cluster_cost.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace capstan::scheduler {
namespace {

Status check(const Cluster& cluster, const ModelWork& model) {
  const auto bad = [](const std::string& what) {
    return invalid_argument("cluster cost: " + what + " must be positive", "cluster");
  };
  if (cluster.nodes < 1) return bad("the number of nodes, " + std::to_string(cluster.nodes) + ",");
  if (cluster.ranks_per_node < 1) {
    return bad("the ranks per node, " + std::to_string(cluster.ranks_per_node) + ",");
  }
  if (!(cluster.memory_bandwidth > 0)) return bad("the memory bandwidth");
  if (!(cluster.flops > 0)) return bad("the arithmetic rate");
  if (cluster.ranks_per_node > 1 && !(cluster.inside.bandwidth > 0)) {
    return bad("the bandwidth inside a node");
  }
  if (cluster.nodes > 1 && !(cluster.between.bandwidth > 0)) {
    return bad("the bandwidth between nodes");
  }
  if (model.layers < 1 || !(model.hidden > 0)) return bad("the model's layers and width");
  return {};
}

/// The collectives of a step over `rows` tokens that leaves `logits` rows of logits.
double communication(const Cluster& c, const ModelWork& m, Split split, double rows,
                     double logits) {
  if (c.ranks() == 1) return 0;
  const double row = m.hidden * m.activation_bytes;
  if (split == Split::kTensor) {
    // After attention, after the feed-forward part, and once for the embedding.
    double seconds = (2 * m.layers + 1) * all_reduce_seconds(c, rows * row);
    // Each rank's part of the vocabulary comes together at rank 0, in float32.
    const double all = logits * m.vocabulary * 4;
    const double from_nodes = all * (c.nodes - 1) / c.nodes;
    const double from_node = all * (c.ranks_per_node - 1) / c.ranks();
    seconds += exchange_seconds(c, from_node, from_nodes);
    return seconds;
  }
  // Tokens go to their experts in FP8 and come back in the activations' type. A node gets a token
  // once, whatever number of its ranks want it, and hands it on inside.
  const double own = rows / c.ranks();
  const double wanted = std::min<double>(m.experts_per_token, c.ranks());
  const double nodes =
      std::min<double>(m.nodes_per_token > 0 ? m.nodes_per_token : c.nodes, c.nodes);
  const double away = own * nodes * (c.nodes - 1) / c.nodes * m.hidden;
  const double inside = own * wanted * (c.ranks_per_node - 1) / c.ranks_per_node * m.hidden;
  return m.moe_layers *
         (exchange_seconds(c, inside, away) +
          exchange_seconds(c, inside * m.activation_bytes, away * m.activation_bytes));
}

double weight_bytes(const Cluster& c, const ModelWork& m, Split split, double rows) {
  const double experts = m.experts_used(rows) * m.expert_bytes * m.moe_layers / c.ranks();
  if (split == Split::kTensor) {
    return m.undivided_bytes + (m.attention_bytes + m.dense_bytes) / c.ranks() + experts;
  }
  return m.undivided_bytes + m.attention_bytes + m.dense_bytes + experts;
}

}  // namespace

double ModelWork::experts_used(double rows) const {
  if (experts == 0) return 0;
  return experts * (1 - std::pow(1 - static_cast<double>(experts_per_token) / experts, rows));
}

double all_reduce_seconds(const Cluster& c, double bytes) {
  double seconds = 0;
  double part = bytes;
  if (c.ranks_per_node > 1) {
    const double r = c.ranks_per_node;
    // One exchange of everything (what custom kernels do with small sums) or two of parts.
    const double once = c.inside.latency + (r - 1) * bytes / c.inside.bandwidth;
    const double twice = 2 * c.inside.latency + 2 * (r - 1) / r * bytes / c.inside.bandwidth;
    if (c.nodes == 1) return std::min(once, twice);
    seconds += twice;
    part = bytes / r;
  }
  if (c.nodes > 1) {
    const double n = c.nodes, rounds = std::ceil(std::log2(n));
    // Recursive doubling of everything, or halving and doubling of parts.
    const double doubling = rounds * (c.between.latency + part / c.between.bandwidth);
    const double halving =
        2 * rounds * c.between.latency + 2 * (n - 1) / n * part / c.between.bandwidth;
    seconds += std::min(doubling, halving);
  }
  return seconds;
}

double exchange_seconds(const Cluster& c, double inside, double between) {
  double seconds = 0;
  if (c.ranks_per_node > 1) seconds = c.inside.latency + inside / c.inside.bandwidth;
  if (c.nodes > 1) {
    seconds = std::max(seconds, c.between.latency + between / c.between.bandwidth);
  }
  return seconds;
}

Result<StepTime> decode_step(const Cluster& c, const ModelWork& m, Split split, int64_t batch,
                             int64_t context) {
  CAPSTAN_RETURN_IF_ERROR(check(c, m));
  const auto rows = static_cast<double>(batch), keys = rows * static_cast<double>(context);
  StepTime t;
  const bool tensor = split == Split::kTensor;
  t.memory = (weight_bytes(c, m, split, rows) + keys * m.kv_bytes / (tensor ? 1 : c.ranks())) /
             c.memory_bandwidth;
  t.arithmetic = (rows * m.flops_per_token + keys * m.flops_per_pair) / c.ranks() / c.flops;
  t.communication = communication(c, m, split, rows, rows);
  t.overhead = c.layer_overhead * m.layers;
  return t;
}

Result<StepTime> prefill_step(const Cluster& c, const ModelWork& m, Split split, int64_t tokens,
                              int64_t context) {
  CAPSTAN_RETURN_IF_ERROR(check(c, m));
  const auto rows = static_cast<double>(tokens), depth = static_cast<double>(context);
  const double prompts = context > 0 ? rows / depth : 0;
  const double pairs = rows * (depth + 1) / 2;
  StepTime t;
  t.memory = (weight_bytes(c, m, split, rows) +
              rows * m.kv_bytes / (split == Split::kTensor ? 1 : c.ranks())) /
             c.memory_bandwidth;
  t.arithmetic = (rows * m.flops_per_token + pairs * m.flops_per_pair) / c.ranks() / c.flops;
  if (split == Split::kTensor) {
    // What every rank computes for itself.
    t.arithmetic += rows * 2 * m.undivided_bytes * (1 - 1.0 / c.ranks()) / c.flops;
  }
  t.communication = communication(c, m, split, rows, prompts);
  t.overhead = c.layer_overhead * m.layers;
  return t;
}

Result<CostModel> linear_cost(const Cluster& c, const ModelWork& m, Split split, int64_t batch,
                              int64_t context, int64_t chunk) {
  if (batch < 1 || context < 1 || chunk < 1) {
    return invalid_argument("cluster cost: batch, context and chunk must be at least 1", "cluster");
  }
  CAPSTAN_ASSIGN(const StepTime one, decode_step(c, m, split, 1, 0));
  CAPSTAN_ASSIGN(const StepTime many, decode_step(c, m, split, batch, 0));
  CAPSTAN_ASSIGN(const StepTime deep, decode_step(c, m, split, batch, context));
  CAPSTAN_ASSIGN(const StepTime prompt, prefill_step(c, m, split, chunk, 1));
  const auto local = [](const StepTime& t) { return t.total() - t.communication; };
  const double rows = static_cast<double>(batch), more = std::max(rows - 1, 1.0);
  CostModel cost;
  cost.decode_token = (local(many) - local(one)) / more;
  cost.step = local(many) - rows * cost.decode_token;
  cost.context_token = (local(deep) - local(many)) / (rows * static_cast<double>(context));
  cost.prefill_token = std::max(0.0, local(prompt) - cost.step) / static_cast<double>(chunk);
  cost.attention_pair = m.flops_per_pair / c.ranks() / c.flops;
  cost.communication.decode_token = (many.communication - one.communication) / more;
  cost.communication.step = many.communication - rows * cost.communication.decode_token;
  cost.communication.prefill_token =
      std::max(0.0, prompt.communication - cost.communication.step) / static_cast<double>(chunk);
  return cost;
}

}  // namespace capstan::scheduler
