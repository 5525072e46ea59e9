// How long a step of a model takes on T ranks of N nodes: memory and arithmetic of a rank, and the
// collectives between layers. Pure arithmetic; what it yields goes into the simulator's CostModel.
//
// Nothing is overlapped: a layer's collective starts when its arithmetic has ended. Ranks are
// alike and experts evenly loaded. Sources of the figures stand beside them; docs/scaling.md
// compares the results with published measurements.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "scheduler/simulator.h"

namespace capstan::scheduler {

struct Link {
  double latency = 0;    // seconds until a small message is of use on the other side, both polling
  double bandwidth = 0;  // bytes per second and rank, one direction
};

struct Cluster {
  int nodes = 1;
  int ranks_per_node = 1;
  /// Of one rank, as reached by kernels.
  double memory_bandwidth = 0;  // bytes per second
  double flops = 0;
  double layer_overhead = 0;  // seconds per layer that neither roof explains: launches, tails
  Link inside, between;       // ranks of one node; equal ranks of two nodes

  int ranks() const { return nodes * ranks_per_node; }
};

/// Seconds between nodes that explain a published two-node figure with NCCL, and those of this
/// project's own way: an all-reduce of 7,168 float32, one token's state, between two processes that
/// poll plain sockets on loopback (p50, two cores of an AMD EPYC).
inline constexpr double kNcclBetweenNodes = 116e-6, kPolledSockets = 10.2e-6;

/// Nodes of eight accelerators, figures from data sheets and published measurements (see the
/// source): "h100", "h200" or "h800". kInvalidArgument for other names.
Result<Cluster> accelerator_cluster(const std::string& name, int nodes);

/// What a step of a model moves and computes, whole model, all layers.
struct ModelWork {
  int layers = 0;
  int moe_layers = 0;
  double hidden = 0;            // elements
  double vocabulary = 0;        // rows of the head
  double activation_bytes = 2;  // of an element between ranks
  double undivided_bytes = 0;   // weights every rank of a tensor-parallel group reads
  double attention_bytes = 0;   // the rest of attention's
  double dense_bytes = 0;       // dense layers, shared experts, head
  double expert_bytes = 0;      // one routed expert of one layer
  int experts = 0;              // of a layer
  int experts_per_token = 0;
  int nodes_per_token = 0;  // most nodes whose experts a token may use
  double kv_bytes = 0;      // of a position; every rank that attends reads all of it
  double flops_per_token = 0;
  double flops_per_pair = 0;  // of a row and a position it reads

  /// Expected distinct experts of a layer that `rows` independent tokens use.
  double experts_used(double rows) const;
};

/// DeepSeek-V3 and R1: 671e9 parameters in FP8 with BF16 activations and KV.
ModelWork deepseek_671b();

enum class Split : uint8_t {
  kTensor,         // heads, columns and experts divided; two all-reduces per layer
  kDataAttention,  // each rank attends its own requests; tokens travel to experts and back
};

/// Seconds of one step.
struct StepTime {
  double memory = 0, arithmetic = 0;  // of which the longer counts
  double communication = 0;
  double overhead = 0;
  double total() const {
    return (memory > arithmetic ? memory : arithmetic) + communication + overhead;
  }
  double communication_share() const { return total() > 0 ? communication / total() : 0; }
};

/// Sum of `bytes` over all ranks, on all: reduce-scatter inside the nodes, all-reduce of a part
/// between them, all-gather inside. Small sums go inside in one exchange of everything.
double all_reduce_seconds(const Cluster& cluster, double bytes);
/// Each rank sends `inside` bytes to ranks of its node and `between` bytes to other nodes.
double exchange_seconds(const Cluster& cluster, double inside, double between);

/// kInvalidArgument for a cluster or model without ranks, bandwidth or layers.
Result<StepTime> decode_step(const Cluster& cluster, const ModelWork& model, Split split,
                             int64_t batch, int64_t context);
/// One step over `tokens` of prompts of `context` positions each. With data-parallel attention the
/// tokens are spread over the ranks.
Result<StepTime> prefill_step(const Cluster& cluster, const ModelWork& model, Split split,
                              int64_t tokens, int64_t context);

/// Steps around `batch` decodes of `context` positions and `chunk` prompt tokens, made linear for
/// the simulator: exact for a step of one decode or of `batch` of them, and for a chunk of prompts
/// of one token each.
Result<CostModel> linear_cost(const Cluster& cluster, const ModelWork& model, Split split,
                              int64_t batch, int64_t context, int64_t chunk);

}  // namespace capstan::scheduler
