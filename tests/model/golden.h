// Golden outputs of tests/testdata/model (its README.md has the format), and models to compare.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/value_to.hpp>
#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu_ops.h"
#include "model/checkpoint.h"
#include "model/model.h"

namespace capstan::model {

struct GoldenCase {
  std::vector<int32_t> prompt, logit_positions, greedy, decode_steps;
  std::vector<std::vector<float>> logits, decode_logits;
};

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

class Golden {
 public:
  /// `stem`: path without .json and .f32
  explicit Golden(const std::string& stem)
      : json_(boost::json::parse(read_file(stem + ".json"))), blob_(read_file(stem + ".f32")) {}

  GoldenCase get(const std::string& name) const {
    const boost::json::object& c = json_.at("cases").at(name).as_object();
    GoldenCase out;
    out.prompt = ints(c.at("prompt"));
    out.logit_positions = ints(c.at("logit_positions"));
    out.greedy = ints(c.at("greedy"));
    out.decode_steps = ints(c.at("decode_steps"));
    out.logits = tensor(c.at("logits"));
    if (c.contains("decode_logits")) out.decode_logits = tensor(c.at("decode_logits"));
    return out;
  }
  const boost::json::value& json() const { return json_; }

  /// The rows of a tensor that the document describes.
  std::vector<std::vector<float>> tensor(const boost::json::value& v) const {
    const auto shape = boost::json::value_to<std::vector<size_t>>(v.at("shape"));
    const auto offset = boost::json::value_to<size_t>(v.at("offset"));
    std::vector<std::vector<float>> rows(shape.at(0), std::vector<float>(shape.at(1)));
    for (size_t i = 0; i < rows.size(); ++i) {
      const size_t at = (offset + i * shape[1]) * sizeof(float);
      if (at + shape[1] * sizeof(float) > blob_.size()) {
        ADD_FAILURE() << "golden tensor outside its file";
        break;
      }
      std::memcpy(rows[i].data(), blob_.data() + at, shape[1] * sizeof(float));
    }
    return rows;
  }

 private:
  static std::vector<int32_t> ints(const boost::json::value& v) {
    return boost::json::value_to<std::vector<int32_t>>(v);
  }

  boost::json::value json_;
  std::string blob_;
};

/// max |x - y| / max |y|
inline double relative_difference(const std::vector<float>& x, const std::vector<float>& y) {
  double difference = 0, largest = 0;
  EXPECT_EQ(x.size(), y.size());
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    if (!std::isfinite(x[i])) return HUGE_VAL;
    difference = std::max(difference, std::abs(double{x[i]} - double{y[i]}));
    largest = std::max(largest, std::abs(double{y[i]}));
  }
  return difference / largest;
}

/// 1 - 2 x.y / (|x|^2 + |y|^2): sees errors of scale as well.
inline double cosine_difference(const std::vector<float>& x, const std::vector<float>& y) {
  double dot = 0, norms = 0;
  EXPECT_EQ(x.size(), y.size());
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    if (!std::isfinite(x[i])) return HUGE_VAL;
    dot += double{x[i]} * double{y[i]};
    norms += double{x[i]} * double{x[i]} + double{y[i]} * double{y[i]};
  }
  return 1 - 2 * dot / norms;
}

/// Largest logit less the second largest.
inline double top_margin(std::vector<float> logits) {
  std::partial_sort(logits.begin(), logits.begin() + 2, logits.end(), std::greater<>());
  return double{logits[0]} - double{logits[1]};
}

/// A model on its own pool; the pool outlives the model. One thread by default: joining costs
/// microseconds on a quiet machine and milliseconds on a busy one, and that threads change no bit
/// has a test of its own.
struct LoadedModel {
  std::unique_ptr<platform::ThreadPool> pool;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::unique_ptr<Model> model;
};

/// On the ops that `make_ops` makes.
using MakeOps = std::function<Result<std::shared_ptr<kernels::Ops>>(platform::ThreadPool& pool)>;
inline LoadedModel load_on(const std::string& path, const MakeOps& make_ops, int threads = 1,
                           const LoadOptions& options = {}) {
  LoadedModel m;
  m.pool = std::make_unique<platform::ThreadPool>(threads, /*pin=*/false);
  auto checkpoint = Checkpoint::open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  if (!checkpoint.ok()) return m;
  m.checkpoint = std::move(*checkpoint);
  auto ops = make_ops(*m.pool);
  EXPECT_TRUE(ops.ok()) << ops.error().message;
  if (!ops.ok()) return m;
  auto model = load_model(m.checkpoint, *ops, *m.pool, options);
  EXPECT_TRUE(model.ok()) << model.error().message;
  if (model.ok()) m.model = std::move(*model);
  return m;
}

inline LoadedModel load(const std::string& path, const kernels::CpuOpsOptions& ops_options,
                        int threads = 1, const LoadOptions& options = {}) {
  return load_on(
      path, [&](platform::ThreadPool& pool) { return kernels::make_cpu_ops(ops_options, pool); },
      threads, options);
}

inline std::string testdata(const std::string& name) {
  return std::string(CAPSTAN_TESTDATA) + "/model/" + name;
}

}  // namespace capstan::model
