// How the weights of a model are split among ranks (spec: tensor and expert parallelism).
//
// Heads are divided evenly: rank r has query heads [r*n/T, (r+1)*n/T), and of grouped attention the
// key and value heads that they use; where there are fewer than ranks, T/n_kv ranks hold the same.
// FFN widths and the vocabulary may be uneven, since formats are cut at their blocks: 8960 columns
// in Q4_K are 35 blocks, 17 for one rank and 18 for the other, and where blocks are fewer than
// ranks some ranks have none. Experts are held whole by groups of T/ep_size ranks that cut each
// among them. What all ranks hold whole: norms, routers, the first products of latent attention,
// the projection of multi-token prediction; and the embedding, of which a rank reads the rows of
// the tokens it sees: that costs no memory (the file stays mapped) and saves the all-reduce that a
// split by vocabulary would need.
//
// Data-parallel attention (dp_size > 1): heads are divided among the T/dp_size ranks of a group,
// and each group attends, and keeps keys and values, for its own sequences. All else is as above,
// on the rows of all groups. It multiplies the room for sequences where ranks would keep the same
// keys and values (latent attention: all of them), for more attention weights on each rank.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "model/config.h"

namespace capstan::model {

struct Shard {
  int rank = 0;
  int size = 1;     // ranks in all: --tp-size
  int ep_size = 1;  // groups of ranks that hold different experts: divides `size`
  int dp_size = 1;  // groups of ranks that attend for different sequences: divides `size`

  int ranks_per_expert() const { return size / ep_size; }
  /// Which of the ep_size groups this rank belongs to, and its place there.
  int expert_group() const { return rank / ranks_per_expert(); }
  int expert_part() const { return rank % ranks_per_expert(); }
  /// The same of attention.
  int attention_ranks() const { return size / dp_size; }
  int attention_group() const { return rank / attention_ranks(); }
  int attention_part() const { return rank % attention_ranks(); }
};

/// Whether the model can be split so: numbers of ranks and heads. kInvalidArgument with the rule
/// that is broken, the values, and what would do.
Status check_shard(const ModelConfig& config, const Shard& shard);

/// The config as this rank's attention and cache see it: its number of heads. All else is the
/// model's.
ModelConfig local_config(const ModelConfig& config, const Shard& shard);

/// Where part number `part` of `parts` nearly equal runs of `units` begins; smaller ones come
/// first, since rank 0 has other work to do.
int64_t part_boundary(int64_t units, int part, int parts);

/// Parts of `size` rows are best cut at multiples of this: a packed panel's rows, or 1 where that
/// would be uneven.
int64_t even_part_unit(int64_t size, int parts);

/// Tokens of the vocabulary whose logits each rank computes.
std::vector<int64_t> vocabulary_parts(const ModelConfig& config, const Shard& shard);

}  // namespace capstan::model
