// Loading models with experts and latent attention: errors, dummy weights, bytes, memory.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>

#include "deepseek_models.h"
#include "model/describe.h"
#include "model/gguf_config.h"
#include "model/weights.h"

namespace capstan::model {
namespace {

namespace json = boost::json;
using Edit = std::function<void(json::object&)>;

Result<std::unique_ptr<Model>> try_open(const std::string& path, const LoadOptions& options = {}) {
  static platform::ThreadPool pool(1, /*pin=*/false);
  auto checkpoint = Checkpoint::open(path);
  if (!checkpoint.ok()) return checkpoint.error();
  auto ops = kernels::make_cpu_ops({}, pool);
  if (!ops.ok()) return ops.error();
  return load_model(std::move(*checkpoint), *ops, pool, options);
}

/// load_model on a recipe after `edit` has changed it.
Result<std::unique_ptr<Model>> try_recipe(const std::string& name, const Edit& edit,
                                          const LoadOptions& options = {}) {
  const TempDir dir;
  return try_open(write_recipe(recipe_path(name), dir, edit), options);
}

json::object& tensor(json::object& recipe, std::string_view name) {
  for (json::value& t : recipe.at("tensors").as_array()) {
    if (t.at("name").as_string() == json::string_view(name)) return t.as_object();
  }
  ADD_FAILURE() << "no tensor " << name;
  return recipe.at("tensors").as_array().at(0).as_object();
}

void remove(json::object& recipe, std::string_view name) {
  json::array& all = recipe.at("tensors").as_array();
  for (auto it = all.begin(); it != all.end(); ++it) {
    if (it->at("name").as_string() == json::string_view(name)) {
      all.erase(it);
      return;
    }
  }
  ADD_FAILURE() << "no tensor " << name;
}

const std::string kScale = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv";

TEST(DeepseekLoader, NamesTheTensorThatIsMissingOrWrong) {
  struct Case {
    Edit edit;
    ErrorCode code;
    std::vector<std::string> parts;
  };
  const std::string expert = "model.layers.2.mlp.experts.13.up_proj.weight";
  const std::vector<Case> cases = {
      {[&](auto& r) { remove(r, expert); }, ErrorCode::kDataLoss, {expert, "missing"}},
      {[&](auto& r) { remove(r, kScale); }, ErrorCode::kDataLoss, {kScale, "[2, 2]", "missing"}},
      {[&](auto& r) {
         tensor(r, kScale)["shape"] = json::array{1, 2};
       },
       ErrorCode::kDataLoss,
       {kScale, "[1, 2]", "[2, 2]"}},
      {[&](auto& r) { tensor(r, kScale)["dtype"] = "BF16"; },
       ErrorCode::kInvalidArgument,
       {kScale, "BF16", "F32"}},
      {[&](auto& r) { tensor(r, kScale)["centre"] = -1.0; },
       ErrorCode::kDataLoss,
       {kScale, "block scale", "damaged"}},
      {[](auto& r) { tensor(r, "lm_head.weight")["dtype"] = "F8_E4M3"; },
       ErrorCode::kInvalidArgument,
       {"lm_head.weight", "F8_E4M3"}},
      {[](auto& r) { remove(r, "model.layers.1.mlp.gate.e_score_correction_bias"); },
       ErrorCode::kDataLoss,
       {"e_score_correction_bias", "[16]", "missing"}},
      {[](auto& r) {
         tensor(r, "model.layers.1.mlp.gate.weight")["shape"] = json::array{15, 256};
       },
       ErrorCode::kDataLoss,
       {"model.layers.1.mlp.gate.weight", "[15, 256]", "[16, 256]"}},
      // A BF16 matrix whose scales were forgotten in the file, and an expert too many.
      {[](auto& r) {
         tensor(r, "model.layers.0.self_attn.o_proj.weight") =
             json::object{{"name", "model.layers.0.self_attn.o_proj.weight"},
                          {"dtype", "BF16"},
                          {"shape", json::array{256, 256}},
                          {"amplitude", 0.1}};
       },
       ErrorCode::kInvalidArgument,
       {"model.layers.0.self_attn.o_proj.weight_scale_inv", "is not a weight of"}},
      {[](auto& r) { r["config"].as_object()["n_routed_experts"] = 12; },
       ErrorCode::kDataLoss,
       {"mlp.gate.weight", "[16, 256]", "[12, 256]"}},
      {[](auto& r) { r["config"].as_object()["num_nextn_predict_layers"] = 0; },
       ErrorCode::kInvalidArgument,
       {"num_nextn_predict_layers is 0"}},
      {[](auto& r) { remove(r, "model.layers.3.eh_proj.weight"); },
       ErrorCode::kDataLoss,
       {"model.layers.3.eh_proj.weight", "[256, 512]", "missing"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.parts[0]);
    expect_error(try_recipe("tiny-v3-fp8", c.edit, {.draft = true}), c.code, c.parts);
  }
  // Without drafting its layer is not looked at.
  EXPECT_TRUE(
      try_recipe("tiny-v3-fp8", [](auto& r) { remove(r, "model.layers.3.eh_proj.weight"); }).ok());
}

TEST(DeepseekLoader, CodesThatAreNoNumbersAreRefused) {
  const TempDir dir;
  write_recipe(recipe_path("tiny-v3-fp8"), dir);
  const std::string name = "model.layers.2.mlp.experts.7.down_proj.weight";
  std::string file = read_file(dir.file("model.safetensors"));
  const size_t entry = file.find(name + "\":");
  ASSERT_NE(entry, std::string::npos);
  const size_t offsets = file.find("data_offsets\":[", entry) + 15;
  uint64_t header = 0;
  std::memcpy(&header, file.data(), sizeof header);
  file[8 + header + std::stoul(file.substr(offsets)) + 77] = '\x7f';
  dir.write("model.safetensors", file);
  expect_error(try_open(dir.path()), ErrorCode::kDataLoss, {name});
}

TEST(DeepseekLoader, OnlyChosenExpertsCountPerToken) {
  for (const char* name : {"tiny-v3-fp8", "tiny-qwen3-moe"}) {
    const auto model = try_open(deepseek_checkpoint(name));
    ASSERT_TRUE(model.ok()) << model.error().message;
    const ModelConfig& c = (*model)->config();
    const double element = c.weight_dtype == DType::kBF16 ? 2 : 1;
    const double expert = 3.0 * static_cast<double>(c.hidden_size * c.moe.intermediate_size);
    const auto layers = std::count(c.moe.layers.begin(), c.moe.layers.end(), true);
    const double unread = static_cast<double>(layers * (c.moe.experts - c.moe.top_k)) * expert;
    const auto held = static_cast<double>((*model)->weight_bytes());
    const auto read = static_cast<double>((*model)->weight_bytes_per_token());
    const double embedding = 2.0 * static_cast<double>((c.vocab_size - 1) * c.hidden_size);
    // FP8 panels hold their scales too.
    EXPECT_NEAR(held - embedding - read, unread * element, unread * element * 0.02) << name;
  }
}

Session::Rows dummy_logits(const std::string& recipe, uint64_t seed) {
  const TempDir dir;
  const json::value r = json::parse(read_file(recipe_path(recipe)));
  dir.write("config.json", json::serialize(r.at("config")));
  LoadOptions options{.dummy_weights = true, .dummy_seed = seed};
  options.draft = r.at("config").as_object().contains("num_nextn_predict_layers");
  auto model = try_open(dir.path(), options);
  EXPECT_TRUE(model.ok()) << model.error().message;
  if (!model.ok()) return {};
  EXPECT_EQ((*model)->draft() != nullptr, options.draft);
  Session session(**model, 4);
  const std::vector<int32_t> prompt = {1, 39, 3, 7};
  return session.prefill(prompt, 0);
}

TEST(DeepseekLoader, DummyWeightsNeedOnlyTheConfig) {
  for (const char* recipe : {"tiny-v3-fp8", "tiny-v3-bf16", "tiny-v2", "tiny-qwen3-moe"}) {
    SCOPED_TRACE(recipe);
    const Session::Rows a = dummy_logits(recipe, 1), b = dummy_logits(recipe, 2);
    ASSERT_EQ(a.size(), 4u);
    EXPECT_NE(a, b);
    EXPECT_EQ(a, dummy_logits(recipe, 1));
    for (const auto& row : a) {
      double square = 0;
      for (const float v : row) square += double{v} * v;
      const double rms = std::sqrt(square / static_cast<double>(row.size()));
      EXPECT_GT(rms, 0.1);
      EXPECT_LT(rms, 10.0);
    }
  }
}

TEST(DeepseekLoader, DescribesExpertsAndLatents) {
  const auto open = [](const char* name) { return Checkpoint::open(deepseek_checkpoint(name)); };
  const auto v3 = open("tiny-v3-fp8");
  ASSERT_TRUE(v3.ok()) << v3.error().message;
  EXPECT_EQ(
      describe(**v3),
      "DeepseekV3ForCausalLM, 8.4M parameters (3.4M per token), 3 layers, hidden 256, 8 heads "
      "of 32+32 over a latent of 128+32, 4 of 16 experts and 1 shared in 2 layers, 1 "
      "multi-token prediction layer, vocabulary 1024, context 1024; 9.0 MB of weights: F8_E4M3 "
      "93.6%, BF16 6.4%, F32 0.0%");
  const auto qwen = open("tiny-qwen3-moe");
  ASSERT_TRUE(qwen.ok());
  EXPECT_NE(describe(**qwen).find("8/2 heads of 64, 4 of 16 experts in 2 layers, vocabulary"),
            std::string::npos)
      << describe(**qwen);
}

/// Peak resident bytes since the last reset, without pages of files.
size_t peak_rss() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with("VmHWM:")) return std::stoul(line.substr(6)) * 1024;
  }
  return 0;
}

size_t rss() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with("VmRSS:")) return std::stoul(line.substr(6)) * 1024;
  }
  return 0;
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/// Mapped pages go back as they are packed: loading takes little more than the model does.
TEST(DeepseekLoader, PeakMemoryIsThatOfTheModel) {
  // 96 experts in 2 layers: 75 MB of BF16, each matrix a small part of it.
  const TempDir dir;
  write_recipe(recipe_path("tiny-v3-bf16"), dir, [](json::object& r) {
    r.at("config").as_object()["n_routed_experts"] = 96;
    json::array more;
    for (json::value& t : r.at("tensors").as_array()) {
      const std::string name(t.at("name").as_string());
      if (name.find("mlp.gate.weight") != std::string::npos) t.as_object()["shape"] = {96, 256};
      if (name.find("correction_bias") != std::string::npos) t.as_object()["shape"] = {96};
      const size_t zero = name.find(".experts.0.");
      if (zero == std::string::npos) continue;
      for (int e = 16; e < 96; ++e) {
        json::value copy = t;
        copy.as_object()["name"] =
            name.substr(0, zero + 9) + std::to_string(e) + name.substr(zero + 10);
        more.push_back(std::move(copy));
      }
    }
    for (json::value& t : more) r.at("tensors").as_array().push_back(std::move(t));
  });
  { std::ofstream("/proc/self/clear_refs") << "5"; }  // the peak starts again from here
  const size_t before = rss();
  if (peak_rss() > before + (size_t{1} << 20)) GTEST_SKIP() << "the peak cannot be reset here";
  const auto model = try_open(dir.path());
  ASSERT_TRUE(model.ok()) << model.error().message;
  const size_t bytes = (*model)->weight_bytes();
  EXPECT_GT(bytes, size_t{75} << 20);
  EXPECT_LE(static_cast<double>(peak_rss() - before), 1.1 * static_cast<double>(bytes));
}
#endif

/// Steps of several sequences, chunks and pages, on several threads. With the absorbed form bits
/// depend on none of these; with the choice of form they stay within rounding.
TEST(DeepseekDecoder, BatchingChunkingAndThreadsChangeNoBit) {
  for (const char* name : {"tiny-v3-fp8", "tiny-v3-new-q8_0", "tiny-qwen3-moe"}) {
    SCOPED_TRACE(name);
    const std::vector<int32_t> all = deepseek_golden(name).get("short").prompt;
    const std::span<const int32_t> prompt(all);
    const LoadOptions absorbed{.mla_form = kernels::MlaForm::kAbsorbed};
    const auto load_on = [&](int threads, const LoadOptions& options) {
      return load(deepseek_checkpoint(name), {}, threads, options);
    };
    const LoadedModel one = load_on(1, absorbed);
    ASSERT_NE(one.model, nullptr);
    Session alone(*one.model, 16);
    const Session::Rows a = alone.prefill(prompt, 0, 0);
    const Session::Rows b = alone.prefill(prompt.subspan(5), 0, 1);
    for (const int threads : {1, 2, 3}) {
      SCOPED_TRACE(threads);
      const LoadedModel many = load_on(threads, absorbed);
      ASSERT_NE(many.model, nullptr);
      Session session(*many.model, 3);
      EXPECT_EQ(session.step({{0, prompt.first(30)}})[0], a[29]);
      const Session::Rows rows = session.step(
          {{0, prompt.subspan(30)}, {1, prompt.subspan(5, 20), true}, {2, prompt.first(3)}});
      ASSERT_EQ(rows.size(), 22u);
      EXPECT_EQ(rows[0], a.back());
      for (size_t i = 0; i < 20; ++i) EXPECT_EQ(rows[1 + i], b[i]) << i;
      EXPECT_EQ(rows[21], a[2]);
      EXPECT_EQ(session.step({{1, prompt.subspan(25)}})[0], b.back());
    }
    // Without rounding of activations to integers, which would make steps of the least difference.
    const kernels::Isa isa = kernels::supported_isas().back();
    const LoadedModel exact = load_deepseek(name, isa, absorbed);
    const LoadedModel free = load_deepseek(name, isa, {}, 2);
    const Session::Rows expected = Session(*exact.model, 16).prefill(prompt, 0);
    for (const auto& [page, chunk] :
         std::vector<std::pair<int, size_t>>{{1, 1}, {16, 7}, {3, 48}}) {
      Session session(*free.model, page);
      const Session::Rows rows = session.prefill(prompt, chunk);
      for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_LE(relative_difference(rows[i], expected[i]), 1e-5) << chunk << " " << i;
      }
    }
  }
}

/// Latents of half the width and of eight bits: the model's opinion stays. Eight bits move some
/// tokens to other experts, which changes their rows more than rounding could: over the rows the
/// cosine difference was 0.019 on average and 0.082 at most.
TEST(DeepseekDecoder, NarrowCachesStayClose) {
  struct Limits {
    DType dtype;
    double relative, cosine, mean_cosine;
  };
  const GoldenCase golden = deepseek_golden("tiny-v3-bf16").get("short");
  const LoadedModel m = load_deepseek("tiny-v3-bf16", kernels::supported_isas().back());
  ASSERT_NE(m.model, nullptr);
  for (const Limits& limit :
       {Limits{DType::kF16, 5e-3, 1e-6, 1e-6}, Limits{DType::kBF16, 4e-2, 1e-4, 1e-4},
        Limits{DType::kF8E4M3, 0.6, 0.12, 0.03}}) {
    SCOPED_TRACE(dtype_info(limit.dtype).name);
    Session session(*m.model, 16, limit.dtype);
    const Session::Rows rows = session.prefill(golden.prompt, 16);
    double relative = 0, cosine = 0, sum = 0;
    for (size_t i = 0; i < golden.logit_positions.size(); ++i) {
      const std::vector<float>& row = rows[static_cast<size_t>(golden.logit_positions[i])];
      relative = std::max(relative, relative_difference(row, golden.logits[i]));
      cosine = std::max(cosine, cosine_difference(row, golden.logits[i]));
      sum += cosine_difference(row, golden.logits[i]);
    }
    EXPECT_LE(relative, limit.relative);
    EXPECT_GT(relative, 0);
    EXPECT_LE(cosine, limit.cosine);
    EXPECT_LE(sum / static_cast<double>(golden.logit_positions.size()), limit.mean_cosine);
    RecordProperty(std::string(dtype_info(limit.dtype).name), std::to_string(relative));
  }
}

}  // namespace
}  // namespace capstan::model
