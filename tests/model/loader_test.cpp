#include <gtest/gtest.h>

#include <atomic>

#include "golden.h"
#include "model/dummy_weights.h"
#include "model/weights.h"
#include "quant/codecs.h"
#include "session.h"
#include "tiny_model.h"

namespace capstan::model {
namespace {

/// load_model on the files in `dir` with the plain oracle kernels.
Result<std::unique_ptr<Model>> try_load(const TempDir& dir, const LoadOptions& options = {}) {
  static platform::ThreadPool pool(2, /*pin=*/false);
  auto checkpoint = Checkpoint::open(dir.path());
  if (!checkpoint.ok()) return checkpoint.error();
  auto ops = kernels::make_cpu_ops({.isa = kernels::Isa::kRef}, pool);
  if (!ops.ok()) return ops.error();
  return load_model(std::move(*checkpoint), *ops, pool, options);
}

void write_tiny(const TempDir& dir, const std::vector<FileTensor>& tensors) {
  dir.write("config.json", kTinyConfig);
  dir.write("model.safetensors", safetensors_file(tensors));
}

TEST(Loader, LoadsReportsProgressAndCountsBytes) {
  const TempDir dir;
  write_tiny(dir, tiny_tensors());
  std::vector<LoadProgress> reports;
  LoadOptions options;
  options.progress = [&](const LoadProgress& p) { reports.push_back(p); };
  const auto model = try_load(dir, options);
  ASSERT_TRUE(model.ok()) << model.error().message;
  ASSERT_FALSE(reports.empty());
  EXPECT_EQ(reports.back().bytes_done, reports.back().bytes_total);
  size_t matrices = 0;
  for (const FileTensor& t : tiny_tensors()) {
    if (t.shape.size() == 2 && t.name != "model.embed_tokens.weight") matrices += t.bytes.size();
  }
  EXPECT_EQ(reports.back().bytes_total, matrices);
  EXPECT_GE((*model)->weight_bytes_per_token(), matrices);
  EXPECT_GE((*model)->weight_bytes(), (*model)->weight_bytes_per_token());
}

TEST(Loader, StopsWhenCancelled) {
  const TempDir dir;
  write_tiny(dir, tiny_tensors());
  std::atomic<int> polls{0};
  LoadOptions options;
  options.cancelled = [&] { return ++polls >= 3; };
  expect_error(try_load(dir, options), ErrorCode::kAborted, {"cancelled"});
  EXPECT_LE(polls, 4);  // the other thread may have been asking at the same time
}

TEST(Loader, NamesTheTensorThatIsWrong) {
  const TempDir missing;
  std::vector<FileTensor> tensors = tiny_tensors();
  std::erase_if(tensors, [](const FileTensor& t) { return t.name == "model.norm.weight"; });
  write_tiny(missing, tensors);
  expect_error(try_load(missing), ErrorCode::kDataLoss, {"'model.norm.weight'", "missing"});

  const TempDir nan;
  tensors = tiny_tensors();
  tensor_named(tensors, "model.norm.weight").bytes.replace(0, 4, raw(NAN));
  write_tiny(nan, tensors);
  expect_error(try_load(nan), ErrorCode::kDataLoss, {"'model.norm.weight'", "nan"});

  const TempDir config_only;
  config_only.write("config.json", kTinyConfig);
  expect_error(try_load(config_only), ErrorCode::kNotFound, {"--load-format dummy"});
}

TEST(Loader, ModelOutlivesNamesOfFiles) {
  std::unique_ptr<Model> model;
  {
    const TempDir dir;
    write_tiny(dir, tiny_tensors());
    auto loaded = try_load(dir);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    model = std::move(*loaded);
  }
  Session session(*model, 4);
  const std::vector<int32_t> prompt = {1, 2, 3};
  EXPECT_EQ(session.prefill(prompt, 0).size(), 3u);  // reads the mapped embedding
}

/// Resident bytes of the mappings of `path`.
size_t resident_bytes(const std::string& path) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  size_t kilobytes = 0;
  bool ours = false;
  while (std::getline(smaps, line)) {
    const size_t colon = line.find(':');
    if (line.find('-') < line.find(' ')) ours = line.ends_with(path);  // the header of a mapping
    if (ours && line.compare(0, 4, "Rss:") == 0) kilobytes += std::stoul(line.substr(colon + 1));
  }
  return kilobytes * 1024;
}

TEST(Loader, PackedWeightsDoNotStayMappedToo) {
  const TempDir dir;
  dir.write("config.json", R"({"model_type":"llama","hidden_size":512,"intermediate_size":1024,
      "num_hidden_layers":1,"num_attention_heads":4,"vocab_size":1024,
      "max_position_embeddings":64,"tie_word_embeddings":true})");
  ModelConfig c;
  c.hidden_size = 512;
  c.intermediate_size = 1024;
  c.num_layers = 1;
  c.num_heads = c.num_kv_heads = 4;
  c.head_dim = 128;
  c.vocab_size = 1024;
  c.tie_word_embeddings = true;
  std::vector<FileTensor> tensors;
  for (const WeightSpec& w : required_weights(c)) {
    tensors.push_back(float_tensor(w.name, w.shape, [](int64_t i) { return i % 7 * 0.01; }));
  }
  const std::string bytes = safetensors_file(tensors);
  const std::string path = dir.write("model.safetensors", bytes);
  EXPECT_EQ(resident_bytes(path), 0u);
  const auto model = try_load(dir);
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(resident_bytes(path), 0u);
  EXPECT_GT(bytes.size(), size_t{12} << 20);
}

Session::Rows dummy_logits(const std::string& config, uint64_t seed) {
  const TempDir dir;
  dir.write("config.json", config);
  LoadOptions options;
  options.dummy_weights = true;
  options.dummy_seed = seed;
  auto model = try_load(dir, options);
  EXPECT_TRUE(model.ok()) << model.error().message;
  if (!model.ok()) return {};
  Session session(**model, 4);
  const std::vector<int32_t> prompt = {1, 39, 3, 7};
  return session.prefill(prompt, 0);
}

TEST(DummyWeights, NeedOnlyAConfigAndFollowTheSeed) {
  std::string tied = kTinyConfig;
  tied.replace(tied.find("\"tie_word_embeddings\":false"), 27, "\"tie_word_embeddings\":true ");
  std::string qwen = kTinyConfig;
  qwen.replace(qwen.find("LlamaForCausalLM"), 16, "Qwen2ForCausalLM");
  for (const std::string& config : {kTinyConfig, tied, qwen}) {
    const Session::Rows a = dummy_logits(config, 1), b = dummy_logits(config, 1),
                        c = dummy_logits(config, 2);
    EXPECT_EQ(a, b);
    EXPECT_NE(a, c);
    for (const auto& row : a) {
      double square = 0;
      for (const float v : row) square += double{v} * v;
      const double rms = std::sqrt(square / static_cast<double>(row.size()));
      EXPECT_GT(rms, 0.1);
      EXPECT_LT(rms, 10.0);
    }
    EXPECT_NE(a[0], a[1]);
  }
}

TEST(DummyWeights, TooLargeAModelIsAnErrorNotACrash) {
  std::string huge = kTinyConfig;
  huge.replace(huge.find("\"vocab_size\":40"), 15, "\"vocab_size\":268435456");
  huge.replace(huge.find("\"hidden_size\":32"), 16, "\"head_dim\":8,\"hidden_size\":16777216");
  const TempDir dir;
  dir.write("config.json", huge);
  LoadOptions options;
  options.dummy_weights = true;
  expect_error(try_load(dir, options), ErrorCode::kResourceExhausted,
               {"the weights take", "bytes of memory"});
}

TEST(DummyWeights, HaveTheVarianceThatKeepsActivationsInSize) {
  const WeightSpec spec{"model.layers.0.mlp.up_proj.weight", {64, 256}};
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    std::vector<std::byte> bytes(dtype_bytes(dtype, 64 * 256));
    ASSERT_TRUE(fill_dummy(spec, dtype, 5, bytes.data()).ok());
    std::vector<float> values(64 * 256);
    quant::dequantize_row(dtype, bytes.data(), values.data(), 64 * 256);
    double sum = 0, square = 0;
    for (const float v : values) {
      sum += v;
      square += double{v} * v;
    }
    EXPECT_NEAR(sum / 16384, 0.0, 0.003) << dtype_info(dtype).name;
    EXPECT_NEAR(square / 16384 * 256, 1.0, 0.1) << dtype_info(dtype).name;
  }
  ModelConfig config;
  config.weight_dtype = DType::kQ4_0;
  EXPECT_EQ(dummy_dtype(config, spec), DType::kQ4_0);
  EXPECT_EQ(dummy_dtype(config, {"w", {4, 40}}), DType::kBF16);  // no whole blocks
  EXPECT_EQ(dummy_dtype(config, {"norm.weight", {64}}), DType::kF32);
  config.weight_dtype = DType::kQ6_K;
  EXPECT_EQ(dummy_dtype(config, spec), DType::kBF16);
}

}  // namespace
}  // namespace capstan::model
