#include "app/rank_setup.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <thread>

#include "app/load_progress.h"
#include "app/memory_plan.h"
#include "base/log.h"
#include "engine/group_check.h"
#include "platform/cpu.h"

namespace capstan::app {
namespace {

/// The progress of ranks that load side by side, added up.
class RankProgress {
 public:
  explicit RankProgress(size_t ranks) : ranks_(ranks), reporter_(::isatty(STDERR_FILENO) == 1) {}

  void update(size_t rank, const model::LoadProgress& p) {
    const std::lock_guard lock(mutex_);
    ranks_[rank] = p;
    model::LoadProgress all;
    for (const model::LoadProgress& r : ranks_) {
      if (r.bytes_total == 0) return;  // its size is not known yet
      all.bytes_done += r.bytes_done;
      all.bytes_total += r.bytes_total;
      all.seconds = std::max(all.seconds, r.seconds);
    }
    reporter_.update(all);
  }
  void abandon() {
    const std::lock_guard lock(mutex_);
    reporter_.abandon();
  }
  model::LoadProgress of(size_t rank) const { return ranks_[rank]; }

 private:
  std::mutex mutex_;
  std::vector<model::LoadProgress> ranks_;
  ProgressReporter reporter_;
};

/// Calls f(i) for every rank of this node at the same time; the first error.
template <class F>
Status on_all(size_t ranks, int first_rank, F&& f) {
  std::vector<Status> results(ranks);
  std::vector<std::thread> threads;
  const auto call = [&](size_t i) {
    try {
      results[i] = f(i);
    } catch (const std::bad_alloc&) {
      results[i] = resource_exhausted("not enough memory");
    } catch (const std::exception& e) {
      results[i] = internal_error(e.what());
    }
  };
  for (size_t i = 1; i < ranks; ++i) {
    threads.emplace_back([&, i] {
      set_thread_rank(first_rank + static_cast<int>(i));
      call(i);
    });
  }
  call(0);
  for (std::thread& t : threads) t.join();
  // A reason before its consequences.
  for (const bool symptoms : {false, true}) {
    for (const Status& status : results) {
      if (!status.ok() && (status.error().code == ErrorCode::kUnavailable) == symptoms) {
        return status;
      }
    }
  }
  return {};
}

/// Replicated parts of the model, routers above all, must come to the same bits everywhere: all
/// ranks use the kernels that node 0's first rank found fastest.
Result<std::optional<kernels::Isa>> agreed_isa(const std::string& own, RankGroup& group) {
  CAPSTAN_ASSIGN(const std::vector<std::string> names, group.exchange("kernels", own));
  for (const kernels::Isa isa : kernels::supported_isas()) {
    if (kernels::isa_name(isa) == names.front()) return std::optional(isa);
  }
  return invalid_argument("node 0 computes with " + names.front() +
                              " kernels, which this CPU does not support (" +
                              platform::cpu_model_name() + "); start all nodes with --isa " + own,
                          "isa");
}

Status make_ops(const ServeOptions& options, RankGroup* group, std::vector<LoadedRank>& ranks) {
  kernels::CpuOpsOptions ops;
  ops.isa = options.isa;
  ops.quantise_activations = !options.exact_activations;
  ops.fp8_as_int8 = options.fp8_as_int8;
  CAPSTAN_ASSIGN(ranks[0].ops, kernels::make_cpu_ops(ops, *ranks[0].pool));
  if (group == nullptr) return {};
  const std::string own(ranks[0].ops->name());
  CAPSTAN_ASSIGN(ops.isa, agreed_isa(own, *group));
  for (LoadedRank& rank : ranks) {
    if (&rank == &ranks[0] && kernels::isa_name(*ops.isa) == own) continue;
    CAPSTAN_ASSIGN(rank.ops, kernels::make_cpu_ops(ops, *rank.pool));
  }
  return {};
}

void make_pools(const ServeOptions& options, std::vector<LoadedRank>& ranks) {
  const auto count = static_cast<int>(ranks.size());
  if (count == 1) {
    ranks[0].pool = std::make_unique<platform::ThreadPool>(options.threads);
    return;
  }
  const int each = threads_per_rank(options.threads, platform::usable_cpu_count(), count);
  for (int i = 0; i < count; ++i) {
    ranks[static_cast<size_t>(i)].pool = std::make_unique<platform::ThreadPool>(
        each, /*pin=*/true, platform::CpuShare{i * each, count * each});
  }
}

}  // namespace

bool drafts_with_layer(const ServeOptions& options) {
  return options.engine.speculation.source == engine::SpeculationConfig::Source::kNextn;
}

Result<std::vector<LoadedRank>> load_ranks(const ServeOptions& options,
                                           std::shared_ptr<const model::Checkpoint> checkpoint,
                                           RankGroup* group,
                                           const std::function<bool()>& cancelled) {
  const ParallelOptions& parallel = options.parallel;
  std::vector<LoadedRank> ranks(static_cast<size_t>(parallel.ranks_per_node()));
  make_pools(options, ranks);
  CAPSTAN_RETURN_IF_ERROR(make_ops(options, group, ranks));
  const std::string each =
      ranks.size() > 1 ? " for each of " + std::to_string(ranks.size()) + " ranks" : "";
  LOG_INFO("{} compute threads{} on {}, kernels {}", ranks[0].pool->size(), each,
           platform::cpu_model_name(), ranks[0].ops->name());

  RankProgress progress(ranks.size());
  const Status loaded = on_all(ranks.size(), parallel.first_rank(), [&](size_t i) -> Status {
    model::LoadOptions load;
    load.dummy_weights = options.load_format == LoadFormat::kDummy;
    load.dummy_seed = options.dummy_seed;
    load.draft = drafts_with_layer(options);
    load.shard = {parallel.first_rank() + static_cast<int>(i), parallel.ranks,
                  parallel.expert_groups, parallel.attention_groups};
    if (group != nullptr) {
      ranks[i].comm = &group->communicator(static_cast<int>(i));
      load.communicator = ranks[i].comm;
      load.ranks_on_machine = group->one_machine() ? parallel.ranks : parallel.ranks_per_node();
    }
    if (options.deterministic) load.mla_form = kernels::MlaForm::kAbsorbed;
    load.progress = [&progress, i](const model::LoadProgress& p) { progress.update(i, p); };
    load.cancelled = cancelled;
    CAPSTAN_ASSIGN(ranks[i].model,
                   model::load_model(checkpoint, ranks[i].ops, *ranks[i].pool, load));
    if (group != nullptr) {
      const model::LoadProgress p = progress.of(i);
      LOG_INFO("Rank {} read {:.3f} GB of weights, its part of {:.3f} GB, in {:.1f} s",
               load.shard.rank, static_cast<double>(p.bytes_done) / 1e9,
               static_cast<double>(checkpoint->total_bytes()) / 1e9, p.seconds);
    }
    return {};
  });
  progress.abandon();
  CAPSTAN_RETURN_IF_ERROR(loaded);
  return ranks;
}

Status size_kv_pool(ServeOptions& options, const std::vector<LoadedRank>& ranks,
                    uint64_t available_before, RankGroup* group) {
  engine::EngineConfig& e = options.engine;
  MemoryPlanInput in;
  in.available_bytes = available_before;
  in.available_now_bytes = platform::memory_info().available_bytes;
  for (const LoadedRank& rank : ranks) {
    in.weight_bytes += rank.model->weight_bytes();
    in.bytes_per_token += model::KvStore::bytes_per_token(rank.model->local_config(), e.kv_dtype,
                                                          drafts_with_layer(options) ? 1 : 0);
  }
  in.context_length = e.scheduler.context_length;
  in.page_size = e.scheduler.page_size;
  in.mem_fraction_static = options.mem_fraction_static;
  in.max_total_tokens = options.max_total_tokens;
  CAPSTAN_ASSIGN(MemoryPlan plan, plan_memory(in));
  if (group != nullptr) {
    CAPSTAN_ASSIGN(const auto pages, group->exchange("kv pages", std::to_string(plan.num_pages)));
    for (size_t node = 0; node < pages.size(); ++node) {
      const int there = std::atoi(pages[node].c_str());
      if (there < 1) return internal_error("node " + std::to_string(node) + " has no KV pages");
      plan.num_pages = std::min(plan.num_pages, there);
    }
  }
  e.scheduler.num_pages = plan.num_pages;
  const int64_t tokens = static_cast<int64_t>(plan.num_pages) * in.page_size;
  LOG_INFO("KV cache: {} tokens in {} pages, {}, {} bytes per token, {:.2f} GB at most", tokens,
           plan.num_pages, dtype_info(e.kv_dtype).name, in.bytes_per_token,
           static_cast<double>(tokens) * static_cast<double>(in.bytes_per_token) / 1e9);
  if (!plan.warning.empty()) LOG_WARN("{}", plan.warning);
  return {};
}

Result<std::unique_ptr<model::KvStore>> make_kv_store(const ServeOptions& options,
                                                      const model::Model& model) {
  const engine::EngineConfig& e = options.engine;
  CAPSTAN_ASSIGN(auto kv, model::KvStore::create(model.local_config(), e.scheduler.num_pages,
                                                 e.scheduler.page_size, e.kv_dtype,
                                                 drafts_with_layer(options) ? 1 : 0));
  return std::make_unique<model::KvStore>(std::move(kv));
}

Status check_ranks(const std::vector<LoadedRank>& ranks, RankGroup& group) {
  CAPSTAN_RETURN_IF_ERROR(on_all(ranks.size(), group.options().first_rank(), [&](size_t i) {
    return engine::check_collectives(*ranks[i].comm);
  }));
  return group.exchange("ready", "self-test passed").status();
}

}  // namespace capstan::app
