#include "app/bench_report.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <fstream>

namespace capstan::app {

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double position = static_cast<double>(values.size() - 1) * p / 100.0;
  const auto low = static_cast<size_t>(std::floor(position));
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (position - static_cast<double>(low));
}

std::string format(const char* pattern, ...) {
  va_list args;
  va_start(args, pattern);
  va_list again;
  va_copy(again, args);
  const int length = std::vsnprintf(nullptr, 0, pattern, args);
  va_end(args);
  std::string out(static_cast<size_t>(std::max(length, 0)), '\0');
  std::vsnprintf(out.data(), out.size() + 1, pattern, again);
  va_end(again);
  return out;
}

std::string to_table(const BenchReport& report) {
  std::string out =
      format("%s\n%s, %d threads\n", report.model.c_str(), report.backend.c_str(), report.threads);
  const MachineRoofs& roofs = report.roofs;
  out +=
      format("machine, measured now: DRAM read %.1f GB/s, INT8 %.0f GOP/s, FP32 %.0f GFLOP/s",
             roofs.read_bytes_per_s / 1e9, roofs.int8_ops_per_s / 1e9, roofs.fp32_ops_per_s / 1e9);
  if (roofs.bf16_ops_per_s > 0) out += format(", BF16 %.0f GFLOP/s", roofs.bf16_ops_per_s / 1e9);
  out += "\n";
  size_t width = 0;
  for (const BenchRow& row : report.rows) width = std::max(width, row.name.size());
  for (const BenchRow& row : report.rows) {
    out += format("  %-*s  %s\n", static_cast<int>(width), row.name.c_str(), row.text.c_str());
  }
  return out;
}

std::string to_json(const BenchReport& report) {
  boost::json::object rows;
  for (const BenchRow& row : report.rows) {
    boost::json::object values;
    for (const auto& [key, value] : row.values) values[key] = value;
    rows[row.name] = std::move(values);
  }
  boost::json::object document;
  document["model"] = report.model;
  document["backend"] = report.backend;
  document["threads"] = report.threads;
  document["roofs"] = {{"read_bytes_per_s", report.roofs.read_bytes_per_s},
                       {"int8_ops_per_s", report.roofs.int8_ops_per_s},
                       {"fp32_ops_per_s", report.roofs.fp32_ops_per_s},
                       {"bf16_ops_per_s", report.roofs.bf16_ops_per_s}};
  document["results"] = std::move(rows);
  return boost::json::serialize(document) + "\n";
}

Status write_file(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
  file.close();
  if (!file) {
    return internal_error("cannot write " + path + ": " + std::strerror(errno));
  }
  return {};
}

}  // namespace capstan::app
