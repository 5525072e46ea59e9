#include "model/checkpoint.h"

#include <gtest/gtest.h>

#include "checkpoint_files.h"
#include "model/describe.h"
#include "model/weights.h"
#include "tiny_model.h"

namespace capstan::model {
namespace {

const std::string kUp = "model.layers.1.mlp.up_proj.weight";

TEST(Checkpoint, OpensOneFile) {
  const TempDir dir;
  dir.write("config.json", kTinyConfig);
  dir.write("generation_config.json", R"({"eos_token_id":[2,3],"temperature":0.7})");
  dir.write("model.safetensors", safetensors_file(tiny_tensors()));
  dir.write("adapter.safetensors", "not looked at");
  const auto c = Checkpoint::open(dir.path());
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ((*c)->config().hidden_size, 32);
  EXPECT_EQ((*c)->config().weight_dtype, DType::kF32);
  EXPECT_EQ((*c)->config().eos_token_ids, (std::vector<int32_t>{2, 3}));
  EXPECT_EQ((*c)->generation_defaults().temperature, 0.7);
  EXPECT_EQ((*c)->gguf_vocabulary(), nullptr);
  EXPECT_EQ((*c)->tensor_names().size(), required_weights(tiny_config()).size());
  ASSERT_NE((*c)->find(kUp), nullptr);
  EXPECT_EQ((*c)->find(kUp)->shape, (std::vector<int64_t>{48, 32}));
  EXPECT_EQ((*c)->find("nothing"), nullptr);
  EXPECT_TRUE(check_weights(**c).ok());
  EXPECT_EQ((*c)->total_bytes(), static_cast<size_t>(parameter_count((*c)->config())) * 4);
  EXPECT_EQ(describe(**c),
            "LlamaForCausalLM, 18.1K parameters, 2 layers, hidden 32, 4/2 heads of 8, vocabulary "
            "40, context 64; 0.1 MB of weights: F32 100.0%");
}

TEST(Checkpoint, OverridesReplaceConfigKeys) {
  const TempDir dir;
  dir.write("config.json", kTinyConfig);
  const auto c = Checkpoint::open(dir.path(), R"({"rope_theta":5.5,"max_position_embeddings":7})");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ((*c)->config().rope.theta, 5.5);
  EXPECT_EQ((*c)->config().max_position_embeddings, 7);
  expect_error(Checkpoint::open(dir.path(), "{nonsense"), ErrorCode::kInvalidArgument, {"JSON"});
}

TEST(Checkpoint, OpensShardsByIndexAndWithoutIndex) {
  const TempDir dir;
  dir.write("config.json", kTinyConfig);
  std::vector<FileTensor> all = tiny_tensors();
  const std::vector<FileTensor> first(all.begin(), all.begin() + 9),
      second(all.begin() + 9, all.end());
  dir.write("model-00001-of-00002.safetensors", safetensors_file(first));
  dir.write("model-00002-of-00002.safetensors", safetensors_file(second));
  const auto without = Checkpoint::open(dir.path());
  ASSERT_TRUE(without.ok()) << without.error().message;
  EXPECT_TRUE(check_weights(**without).ok());

  std::string map;
  for (size_t i = 0; i < all.size(); ++i) {
    map += (i == 0 ? "" : ",") + ("\"" + all[i].name + "\":\"model-0000" + (i < 9 ? "1" : "2") +
                                  "-of-00002.safetensors\"");
  }
  dir.write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":{" + map + "}}");
  const auto with = Checkpoint::open(dir.path());
  ASSERT_TRUE(with.ok()) << with.error().message;
  EXPECT_EQ((*with)->tensor_names(), (*without)->tensor_names());

  // The index promises a tensor that the shard does not have.
  dir.write("model.safetensors.index.json",
            "{\"weight_map\":{" + map + ",\"ghost\":\"model-00002-of-00002.safetensors\"}}");
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss,
               {"'ghost'", "model-00002-of-00002.safetensors"});
  // A shard is absent.
  dir.write("model.safetensors.index.json",
            "{\"weight_map\":{" + map + ",\"ghost\":\"model-00003-of-00003.safetensors\"}}");
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kNotFound,
               {"model-00003-of-00003.safetensors"});
  // The index must not lead out of the directory.
  for (const std::string file :
       {"\"../x.safetensors\"", "\"/etc/passwd\"", "\"\"", "\"..\"", "5"}) {
    dir.write("model.safetensors.index.json", "{\"weight_map\":{\"w\":" + file + "}}");
    expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss, {"'w'", "index.json"});
  }
  dir.write("model.safetensors.index.json", "{\"weight_map\":{}}");
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss, {"weight_map", "empty"});
  dir.write("model.safetensors.index.json", "{}");
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss, {"weight_map"});
}

TEST(Checkpoint, SameTensorInTwoFilesIsRefused) {
  const TempDir dir;
  dir.write("config.json", kTinyConfig);
  dir.write("a.safetensors", safetensors_file(tiny_tensors()));
  dir.write("b.safetensors", safetensors_file({tiny_tensors()[3]}));
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss,
               {"b.safetensors", tiny_tensors()[3].name, "twice"});
}

TEST(Checkpoint, DamagedFilesAreNamed) {
  const TempDir dir;
  const std::string good = safetensors_file(tiny_tensors());
  dir.write("config.json", kTinyConfig);
  dir.write("model.safetensors", good.substr(0, good.size() - 1));
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss,
               {dir.file("model.safetensors"), "'lm_head.weight'", "truncated"});
  dir.write("model.safetensors", "");
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss, {"model.safetensors"});
  dir.write("model.safetensors", good);
  dir.write("config.json", "{\"hidden_size\": 3");
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss, {"config.json", "JSON"});
  dir.write("config.json", kTinyConfig);
  dir.write("generation_config.json", "[]");
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kDataLoss, {"generation_config.json"});
}

TEST(Checkpoint, WrongPathsSayWhatIsExpected) {
  const TempDir dir;
  expect_error(Checkpoint::open(dir.file("absent")), ErrorCode::kNotFound,
               {"absent", "config.json", ".gguf"});
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kNotFound, {dir.path(), "config.json"});
  dir.write("model.safetensors", safetensors_file(tiny_tensors()));
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kNotFound, {"no config.json"});
  expect_error(Checkpoint::open(dir.file("model.safetensors")), ErrorCode::kInvalidArgument,
               {"directory"});
  const TempDir many;
  many.write("a.gguf", "x");
  many.write("b.gguf", "x");
  expect_error(Checkpoint::open(many.path()), ErrorCode::kInvalidArgument, {"a.gguf, b.gguf"});
  expect_error(Checkpoint::open(many.file("a.gguf")), ErrorCode::kDataLoss, {"a.gguf"});
}

Status checked(const std::vector<FileTensor>& tensors, const std::string& overrides = "{}") {
  const TempDir dir;
  dir.write("config.json", kTinyConfig);
  dir.write("model.safetensors", safetensors_file(tensors));
  const auto c = Checkpoint::open(dir.path(), overrides);
  return c.ok() ? check_weights(**c) : c.status();
}

TEST(CheckWeights, NamesMissingAndMisshapenTensors) {
  ASSERT_TRUE(checked(tiny_tensors()).ok());
  for (const WeightSpec& w : required_weights(tiny_config())) {
    std::vector<FileTensor> tensors = tiny_tensors();
    std::erase_if(tensors, [&](const FileTensor& t) { return t.name == w.name; });
    expect_error(checked(tensors), ErrorCode::kDataLoss, {"'" + w.name + "'", "missing"});
  }
  std::vector<FileTensor> tensors = tiny_tensors();
  tensor_named(tensors, kUp).shape = {32, 48};
  expect_error(checked(tensors), ErrorCode::kDataLoss, {"'" + kUp + "'", "[32, 48]", "[48, 32]"});
  expect_error(checked(tiny_tensors(), R"({"intermediate_size":56})"), ErrorCode::kDataLoss,
               {"[48, 32]", "[56, 32]"});
}

TEST(CheckWeights, RefusesOtherDtypesAndForeignWeights) {
  std::vector<FileTensor> tensors = tiny_tensors();
  tensor_named(tensors, kUp) = {kUp, DType::kI32, {48, 32}, std::string(48 * 32 * 4, 'x')};
  expect_error(checked(tensors), ErrorCode::kInvalidArgument, {"'" + kUp + "'", "I32"});
  tensor_named(tensors, kUp) = {kUp, DType::kF8E4M3, {48, 32}, std::string(48 * 32, 'x')};
  expect_error(checked(tensors), ErrorCode::kDataLoss,
               {"'" + kUp + "_scale_inv'", "[1, 1]", "missing", "F8_E4M3"});
  tensors = tiny_tensors();
  tensors.push_back(
      float_tensor("model.layers.0.self_attn.q_proj.bias", {32}, [](int64_t) { return 0.0; }));
  expect_error(checked(tensors), ErrorCode::kInvalidArgument,
               {"'model.layers.0.self_attn.q_proj.bias'", "LlamaForCausalLM"});
  // Old tables and layers beyond the last are no part of the model.
  tensors.back().name = "model.layers.0.self_attn.rotary_emb.inv_freq";
  EXPECT_TRUE(checked(tensors).ok());
  tensors.back().name = "model.layers.2.self_attn.q_proj.bias";
  EXPECT_TRUE(checked(tensors).ok());
}

TEST(CheckWeights, TiedModelsNeedNoHead) {
  std::vector<FileTensor> tensors = tiny_tensors();
  EXPECT_TRUE(checked(tensors, R"({"tie_word_embeddings":true})").ok());
  tensors.pop_back();  // lm_head.weight
  EXPECT_TRUE(checked(tensors, R"({"tie_word_embeddings":true})").ok());
  expect_error(checked(tensors), ErrorCode::kDataLoss, {"'lm_head.weight'"});
}

TEST(CheckWeights, ConfigAloneIsNotEnough) {
  const TempDir dir;
  dir.write("config.json", kTinyConfig);
  const auto c = Checkpoint::open(dir.path());
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_TRUE((*c)->tensor_names().empty());
  expect_error(check_weights(**c), ErrorCode::kNotFound, {dir.path(), "--load-format dummy"});
}

TEST(ParameterCount, OfKnownModels) {
  ModelConfig smol;
  smol.hidden_size = 576;
  smol.intermediate_size = 1536;
  smol.num_layers = 30;
  smol.num_heads = 9;
  smol.num_kv_heads = 3;
  smol.head_dim = 64;
  smol.vocab_size = 49152;
  smol.tie_word_embeddings = true;
  EXPECT_EQ(parameter_count(smol), 134515008);
  ModelConfig qwen;
  qwen.hidden_size = 3584;
  qwen.intermediate_size = 18944;
  qwen.num_layers = 28;
  qwen.num_heads = 28;
  qwen.num_kv_heads = 4;
  qwen.head_dim = 128;
  qwen.vocab_size = 152064;
  qwen.qkv_bias = true;
  EXPECT_EQ(parameter_count(qwen), 7615616512);
}

}  // namespace
}  // namespace capstan::model
