// Loading a model for a benchmark, and steps of it driven by hand, without scheduler or engine.
#pragma once

#include <memory>
#include <vector>

#include "app/bench_options.h"
#include "app/bench_report.h"
#include "kernels/cpu_ops.h"
#include "model/checkpoint.h"
#include "model/model.h"
#include "platform/thread_pool.h"

namespace capstan::app {

/// A loaded model and what it stands on; the order of members is the order of construction.
struct BenchModel {
  std::unique_ptr<platform::ThreadPool> pool;
  std::shared_ptr<kernels::Ops> ops;
  std::unique_ptr<model::Model> model;
  DType kv_dtype = DType::kF16;
  double load_seconds = 0;
};

Result<BenchModel> load_bench_model(const BenchOptions& options);

/// Multiply-add operations (as two) of the matrices for one token, without and with the head.
double body_ops_per_token(const model::ModelConfig& config);
double head_ops_per_token(const model::ModelConfig& config);

Result<std::vector<BenchRow>> bench_decode(BenchModel& loaded, const BenchOptions& options,
                                           const MachineRoofs& roofs);
Result<std::vector<BenchRow>> bench_prefill(BenchModel& loaded, const BenchOptions& options,
                                            const MachineRoofs& roofs);
/// Takes the model away from `loaded`: the engine owns it.
Result<std::vector<BenchRow>> bench_serve(BenchModel& loaded, const BenchOptions& options);

}  // namespace capstan::app
