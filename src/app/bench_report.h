// Figures of a benchmark run, as a table for people and JSON for programs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace capstan::app {

/// One line of the report, e.g. "decode, batch 8". Values keep their order.
struct BenchRow {
  std::string name;
  std::vector<std::pair<std::string, double>> values;  // JSON key, which carries the unit
  std::string text;                                    // the table's right-hand side
};

/// What the machine can do at most, measured in this run with the same threads.
struct MachineRoofs {
  double read_bytes_per_s = 0;
  double int8_ops_per_s = 0;  // multiply and add count as two
  double fp32_ops_per_s = 0;
  double bf16_ops_per_s = 0;  // 0 where the CPU has no BF16 dot product
};

struct BenchReport {
  std::string model;    // path
  std::string backend;  // name of the op table
  int threads = 0;
  MachineRoofs roofs;
  std::vector<BenchRow> rows;
};

/// p in [0, 100], linear between closest ranks; 0 for no values.
double percentile(std::vector<double> values, double p);

/// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

std::string to_table(const BenchReport& report);
std::string to_json(const BenchReport& report);
Status write_file(const std::string& path, const std::string& content);

}  // namespace capstan::app
