// Tensor names of GGUF files in the terms of Hugging Face.
#include "model/config_fields.h"
#include "model/gguf_config.h"
#include "model/printable.h"

namespace capstan::model {
namespace {

using Name = std::pair<std::string_view, std::string_view>;

constexpr Name kGlobal[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

constexpr Name kParts[] = {
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    // Latent attention. Hugging Face has no names for the two halves of kv_b_proj.
    {"attn_q_a", "self_attn.q_a_proj"},
    {"attn_q_a_norm", "self_attn.q_a_layernorm"},
    {"attn_q_b", "self_attn.q_b_proj"},
    {"attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"},
    {"attn_kv_a_norm", "self_attn.kv_a_layernorm"},
    {"attn_kv_b", "self_attn.kv_b_proj"},
    {"attn_k_b", "self_attn.k_b_proj"},
    {"attn_v_b", "self_attn.v_b_proj"},
    // Experts.
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_shexp", "mlp.shared_experts.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_experts.up_proj"},
    {"ffn_down_shexp", "mlp.shared_experts.down_proj"},
    // Multi-token prediction.
    {"nextn.eh_proj", "eh_proj"},
    {"nextn.embed_tokens", "embed_tokens"},
    {"nextn.enorm", "enorm"},
    {"nextn.hnorm", "hnorm"},
    {"nextn.shared_head_head", "shared_head.head"},
    {"nextn.shared_head_norm", "shared_head.norm"},
};

constexpr Name kStacked[] = {
    {"ffn_gate_exps", "gate_proj"}, {"ffn_up_exps", "up_proj"}, {"ffn_down_exps", "down_proj"}};

/// blk.<layer>.<part><suffix>, suffix being .weight or .bias.
struct BlockName {
  std::string_view layer, part, suffix;
};

std::optional<BlockName> split(std::string_view name) {
  constexpr std::string_view kBlock = "blk.";
  if (!name.starts_with(kBlock)) return std::nullopt;
  const size_t dot = name.find('.', kBlock.size());
  const size_t last = name.rfind('.');
  if (dot == std::string_view::npos || last <= dot) return std::nullopt;
  return BlockName{name.substr(kBlock.size(), dot - kBlock.size()),
                   name.substr(dot + 1, last - dot - 1), name.substr(last)};
}

std::string layer_prefix(const BlockName& b) {
  return "model.layers." + std::string(b.layer) + ".";
}

}  // namespace

std::string hf_tensor_name(std::string_view name) {
  for (const auto& [from, to] : kGlobal) {
    if (name == from) return std::string(to);
  }
  // The one vector that is neither weight nor bias of something; older files have no suffix.
  for (const std::string_view end : {".exp_probs_b.bias", ".exp_probs_b"}) {
    if (name.starts_with("blk.") && name.ends_with(end) && name.size() > end.size() + 4) {
      return "model.layers." + std::string(name.substr(4, name.size() - end.size() - 4)) +
             ".mlp.gate.e_score_correction_bias";
    }
  }
  const std::optional<BlockName> b = split(name);
  if (!b) return std::string(name);
  for (const auto& [from, to] : kParts) {
    if (b->part == from) return layer_prefix(*b) + std::string(to) + std::string(b->suffix);
  }
  return std::string(name);
}

Result<std::vector<std::pair<std::string, TensorView>>> hf_tensors(const TensorView& tensor,
                                                                   const std::string& file) {
  std::vector<std::pair<std::string, TensorView>> out;
  const std::optional<BlockName> b = split(tensor.name);
  for (const auto& [from, to] : kStacked) {
    if (!b || b->part != from) continue;
    if (tensor.shape.size() != 3 || tensor.shape[0] < 1 || tensor.shape[0] > kMaxExperts) {
      return data_loss(file + ": tensor " + printable(tensor.name) + " has shape " +
                       shape_string(tensor.shape) + " instead of experts, rows and columns");
    }
    const int64_t experts = tensor.shape[0];
    const size_t bytes = tensor.bytes() / static_cast<size_t>(experts);
    for (int64_t e = 0; e < experts; ++e) {
      TensorView view;
      view.data = tensor.data + static_cast<size_t>(e) * bytes;
      view.dtype = tensor.dtype;
      view.shape = {tensor.shape[1], tensor.shape[2]};
      view.name = tensor.name + "[" + std::to_string(e) + "]";
      out.emplace_back(layer_prefix(*b) + "mlp.experts." + std::to_string(e) + "." +
                           std::string(to) + std::string(b->suffix),
                       std::move(view));
    }
    return out;
  }
  out.emplace_back(hf_tensor_name(tensor.name), tensor);
  return out;
}

}  // namespace capstan::model
