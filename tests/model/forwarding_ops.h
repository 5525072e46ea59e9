// Ops that hand every call on to others: a test overrides what it wants to watch or change.
#pragma once

#include <memory>
#include <utility>

#include "kernels/ops.h"

namespace capstan::model {

class ForwardingOps : public kernels::Ops {
 public:
  explicit ForwardingOps(std::shared_ptr<kernels::Ops> inner) : inner_(std::move(inner)) {}

  std::string_view name() const override { return inner_->name(); }
  Result<std::unique_ptr<kernels::LinearWeight>> pack_linear(
      const kernels::LinearSpec& spec) override {
    return inner_->pack_linear(spec);
  }
  void embed(const kernels::EmbedArgs& args) override { inner_->embed(args); }
  void rms_norm(const kernels::RmsNormArgs& args) override { inner_->rms_norm(args); }
  void linear(const kernels::LinearArgs& args) override { inner_->linear(args); }
  void qkv_rope_store(const kernels::QkvArgs& args) override { inner_->qkv_rope_store(args); }
  void attention(const kernels::AttentionArgs& args) override { inner_->attention(args); }
  void route(const kernels::RouteArgs& args) override { inner_->route(args); }
  void experts(const kernels::ExpertsArgs& args) override { inner_->experts(args); }
  Result<std::unique_ptr<kernels::MlaProjection>> pack_mla(
      const kernels::MlaProjectionSpec& spec) override {
    return inner_->pack_mla(spec);
  }
  void mla_store(const kernels::MlaStoreArgs& args) override { inner_->mla_store(args); }
  void mla_attention(const kernels::MlaAttentionArgs& args) override {
    inner_->mla_attention(args);
  }
  void begin_step() override { inner_->begin_step(); }
  void end_step() override { inner_->end_step(); }

 private:
  std::shared_ptr<kernels::Ops> inner_;
};

}  // namespace capstan::model
