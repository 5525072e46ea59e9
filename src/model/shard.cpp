#include "model/shard.h"

#include <algorithm>
#include <string>

namespace capstan::model {
namespace {

constexpr int64_t kPanel = 16;  // rows of a packed panel (kernels)

/// Key and value heads can be divided among the ranks, or the ranks among them.
bool heads_fit(const ModelConfig& c, int ranks) {
  if (c.num_heads % ranks != 0) return false;
  return c.has_mla() || c.num_kv_heads % ranks == 0 || ranks % c.num_kv_heads == 0;
}

std::string fitting_sizes(const ModelConfig& c) {
  std::string list;
  for (int n = 1; n <= c.num_heads; ++n) {
    if (heads_fit(c, n)) list += (list.empty() ? "" : ", ") + std::to_string(n);
  }
  return list;
}

int64_t vocabulary_boundary(const ModelConfig& c, int part, int parts) {
  const int64_t unit = even_part_unit(c.vocab_size, parts);
  const int64_t units = (c.vocab_size + unit - 1) / unit;
  return std::min(part_boundary(units, part, parts) * unit, c.vocab_size);
}

}  // namespace

Status check_shard(const ModelConfig& c, const Shard& s) {
  const std::string tp = "--tp-size " + std::to_string(s.size) + ": ";
  if (s.size < 1 || s.rank < 0 || s.rank >= s.size) {
    return invalid_argument(tp + "there is no rank " + std::to_string(s.rank), "tp-size");
  }
  if (s.dp_size < 1 || s.size % s.dp_size != 0) {
    return invalid_argument("--dp-size " + std::to_string(s.dp_size) + ": the " +
                                std::to_string(s.size) +
                                " ranks of --tp-size can not be divided in groups of attention "
                                "so; it must divide --tp-size",
                            "dp-size");
  }
  const int n = s.attention_ranks();
  const std::string whose = s.dp_size > 1 ? " (--tp-size / --dp-size)" : "";
  const std::string fitting =
      "; attention of this model can be split over " + fitting_sizes(c) + " ranks";
  if (c.num_heads % n != 0) {
    return invalid_argument(tp + std::to_string(c.num_heads) +
                                " attention heads can not be divided by " + std::to_string(n) +
                                whose + fitting,
                            "tp-size");
  }
  if (!heads_fit(c, n)) {
    return invalid_argument(tp + std::to_string(c.num_kv_heads) +
                                " key and value heads can not be divided by " + std::to_string(n) +
                                whose + ", nor " + std::to_string(n) + " ranks by them" + fitting,
                            "tp-size");
  }
  if (c.vocab_size < s.size) {
    return invalid_argument(tp + "a vocabulary of " + std::to_string(c.vocab_size) +
                                " tokens is too small for as many ranks",
                            "tp-size");
  }
  if (s.ep_size == 1) return {};
  const std::string ep = "--ep-size " + std::to_string(s.ep_size) + ": ";
  if (s.ep_size < 1 || s.size % s.ep_size != 0) {
    return invalid_argument(ep + "the " + std::to_string(s.size) +
                                " ranks of --tp-size can not be divided in groups of experts "
                                "so; it must divide --tp-size",
                            "ep-size");
  }
  if (!c.has_moe()) {
    return invalid_argument(
        ep + "the model (" + c.architecture_name + ") has no experts; leave the flag out",
        "ep-size");
  }
  if (s.ep_size > c.moe.experts) {
    return invalid_argument(ep + "the model has " + std::to_string(c.moe.experts) + " experts",
                            "ep-size");
  }
  return {};
}

ModelConfig local_config(const ModelConfig& config, const Shard& shard) {
  ModelConfig local = config;
  local.num_heads = config.num_heads / shard.attention_ranks();
  local.num_kv_heads = std::max(1, config.num_kv_heads / shard.attention_ranks());
  return local;
}

int64_t part_boundary(int64_t units, int part, int parts) { return units * part / parts; }

int64_t even_part_unit(int64_t size, int parts) {
  return size >= kPanel * kPanel * parts ? kPanel : 1;
}

std::vector<int64_t> vocabulary_parts(const ModelConfig& c, const Shard& shard) {
  std::vector<int64_t> parts;
  for (int r = 0; r < shard.size; ++r) {
    parts.push_back(vocabulary_boundary(c, r + 1, shard.size) -
                    vocabulary_boundary(c, r, shard.size));
  }
  return parts;
}

}  // namespace capstan::model
