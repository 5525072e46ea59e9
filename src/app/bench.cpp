#include "app/bench.h"

#include <cstdio>
#include <cstring>

#include "app/bench_comm.h"
#include "app/bench_model.h"
#include "app/bench_options.h"
#include "app/bench_report.h"
#include "app/bench_roofs.h"
#include "base/log.h"

namespace capstan::app {

static Result<BenchReport> measure(const BenchOptions& options) {
  using Kind = BenchOptions::Kind;
  CAPSTAN_ASSIGN(auto loaded, load_bench_model(options));
  BenchReport report;
  report.model = options.model_path;
  report.backend = std::string(loaded.ops->name());
  report.threads = loaded.pool->size();
  report.roofs = measure_roofs(*loaded.pool);
  BenchRow load;
  load.name = "load";
  load.values = {{"seconds", loaded.load_seconds},
                 {"weight_bytes", static_cast<double>(loaded.model->weight_bytes())}};
  load.text = format("%8.2f s      %.2f GB of weights, %.2f GB read per token", loaded.load_seconds,
                     static_cast<double>(loaded.model->weight_bytes()) / 1e9,
                     static_cast<double>(loaded.model->weight_bytes_per_token()) / 1e9);
  report.rows.push_back(std::move(load));
  const auto add = [&](std::vector<BenchRow> rows) {
    for (BenchRow& row : rows) report.rows.push_back(std::move(row));
  };
  if (options.runs(Kind::kDecode)) {
    CAPSTAN_ASSIGN(auto rows, bench_decode(loaded, options, report.roofs));
    add(std::move(rows));
  }
  if (options.runs(Kind::kPrefill)) {
    CAPSTAN_ASSIGN(auto rows, bench_prefill(loaded, options, report.roofs));
    add(std::move(rows));
  }
  if (options.runs(Kind::kServe)) {  // last: it takes the model
    CAPSTAN_ASSIGN(auto rows, bench_serve(loaded, options));
    add(std::move(rows));
  }
  return report;
}

int run_bench(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "comm") == 0) return run_bench_comm(argc - 1, argv + 1);
  const ParsedBench parsed = parse_bench_options(argc, argv);
  if (!parsed.proceed) return parsed.exit_code;
  // Stdout is the table's; the engine's line per batch would cost time as well.
  if (const Status s = init_logging("warning"); !s.ok()) return 1;
  const auto report = measure(parsed.options);
  if (!report.ok()) {
    std::fprintf(stderr, "capstan bench: %s\n", report.error().message.c_str());
    return 1;
  }
  std::fputs(to_table(*report).c_str(), stdout);
  if (!parsed.options.json_path.empty()) {
    const Status written = write_file(parsed.options.json_path, to_json(*report));
    if (!written.ok()) {
      std::fprintf(stderr, "capstan bench: --json: %s\n", written.error().message.c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace capstan::app
