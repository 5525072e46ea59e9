// Tokenizer against Hugging Face `tokenizers` and transformers, one small vocabulary per family of
// pre-tokenizers, loaded both from a checkpoint directory and from GGUF metadata.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <thread>

#include "text/detokenizer.h"
#include "text/hf_tokenizer.h"
#include "text/text_goldens.h"

namespace capstan::text {
namespace {

namespace json = boost::json;

GgufVocabulary gguf_vocabulary(const std::string& family) {
  const json::object form = read_json("tokenizers/" + family + "/gguf.json").as_object();
  GgufVocabulary v;
  v.model = json::value_to<std::string>(form.at("model"));
  v.pre = json::value_to<std::string>(form.at("pre"));
  v.tokens = json::value_to<std::vector<std::string>>(form.at("tokens"));
  v.token_types = to_ids(form.at("token_types"));
  v.merges = json::value_to<std::vector<std::string>>(form.at("merges"));
  v.bos_id = json::value_to<int32_t>(form.at("bos_id"));
  v.eos_id = json::value_to<int32_t>(form.at("eos_id"));
  v.add_bos = form.at("add_bos").as_bool();
  return v;
}

std::shared_ptr<const Tokenizer> from_directory(const std::string& family) {
  auto tokenizer = Tokenizer::from_directory(testdata("tokenizers/" + family));
  if (!tokenizer.ok()) throw std::runtime_error(tokenizer.error().message);
  return *tokenizer;
}

std::shared_ptr<const Tokenizer> from_gguf(const std::string& family) {
  auto tokenizer = Tokenizer::from_gguf(gguf_vocabulary(family));
  if (!tokenizer.ok()) throw std::runtime_error(tokenizer.error().message);
  return *tokenizer;
}

class Family : public ::testing::TestWithParam<const char*> {
 protected:
  json::object golden() const {
    return read_json(std::string("tokenizers/") + GetParam() + "/golden.json").as_object();
  }

  void expect_golden_ids(const Tokenizer& tokenizer) const {
    const std::vector<std::string> corpus = read_corpus();
    const json::object expected = golden();
    const json::array& ids = expected.at("ids").as_array();
    ASSERT_EQ(ids.size(), corpus.size());
    for (size_t i = 0; i < corpus.size(); ++i) {
      const auto got = tokenizer.encode(corpus[i], false);
      ASSERT_TRUE(got.ok()) << got.error().message;
      EXPECT_EQ(*got, to_ids(ids[i])) << "text " << i << ": " << corpus[i];
    }
    const json::array& special = expected.at("with_special").as_array();
    EXPECT_EQ(*tokenizer.encode("", true), to_ids(special[0]));
    EXPECT_EQ(*tokenizer.encode("Hello", true), to_ids(special[1]));
  }
};

TEST_P(Family, DirectoryGivesReferenceIds) { expect_golden_ids(*from_directory(GetParam())); }

TEST_P(Family, GgufGivesReferenceIds) { expect_golden_ids(*from_gguf(GetParam())); }

// Added tokens are in the vocabulary of the rebuilt form, where the original keeps them apart;
// everything else must be the same file.
TEST_P(Family, GgufRebuildsTheOriginalFile) {
  const auto rebuilt = tokenizer_json_from_gguf(gguf_vocabulary(GetParam()));
  ASSERT_TRUE(rebuilt.ok()) << rebuilt.error().message;
  const std::string original =
      read_text(testdata(std::string("tokenizers/") + GetParam() + "/tokenizer.json"));
  const auto canonical = [](const std::string& text) {
    json::object file = json::parse(*canonical_tokenizer_json(text)).as_object();
    json::object& vocabulary = file.at("model").as_object().at("vocab").as_object();
    for (const json::value& token : file.at("added_tokens").as_array()) {
      vocabulary.erase(token.as_object().at("content").as_string());
    }
    return file;
  };
  const json::object a = canonical(*rebuilt), b = canonical(original);
  for (const auto& entry : b) {
    EXPECT_TRUE(a.contains(entry.key())) << entry.key();
    if (!a.contains(entry.key())) continue;
    EXPECT_EQ(a.at(entry.key()), entry.value()) << entry.key();
  }
}

TEST_P(Family, DecodesAsTheReference) {
  const json::object file = golden();
  for (const auto& tokenizer : {from_directory(GetParam()), from_gguf(GetParam())}) {
    for (const json::value& entry : file.at("decodings").as_array()) {
      const json::object& expected = entry.as_object();
      const std::vector<int32_t> ids = to_ids(expected.at("ids"));
      for (const bool skip : {false, true}) {
        const std::string want =
            json::value_to<std::string>(expected.at(skip ? "skipped" : "text"));
        EXPECT_EQ(*tokenizer->decode(ids, skip), want);
        Detokenizer stream(tokenizer, skip);
        std::string joined;
        for (const int32_t id : ids) {
          const std::string piece = stream.push(id);
          EXPECT_FALSE(first_invalid_utf8(piece)) << piece;
          joined += piece;
        }
        joined += stream.finish();
        EXPECT_EQ(joined, want);
      }
    }
  }
}

TEST_P(Family, NamesAndPaddingRows) {
  const auto tokenizer = from_gguf(GetParam());
  const GgufVocabulary v = gguf_vocabulary(GetParam());
  const auto directory = from_directory(GetParam());
  EXPECT_EQ(tokenizer->vocab_size(), static_cast<int32_t>(v.tokens.size()) - 3);
  EXPECT_EQ(tokenizer->vocab_size(), directory->vocab_size());
  EXPECT_EQ(tokenizer->bos_id(), v.bos_id);
  EXPECT_EQ(directory->bos_id(), v.bos_id);
  EXPECT_EQ(directory->eos_id(), v.eos_id);
  EXPECT_EQ(directory->bos_token(), tokenizer->bos_token());
  EXPECT_TRUE(directory->is_special(v.bos_id));
  EXPECT_FALSE(directory->is_special(*directory->id_of("<think>")));
  EXPECT_EQ(directory->token_bytes(*directory->id_of("<think>")), "<think>");
  EXPECT_EQ(directory->token_bytes(*directory->id_of("\u0120")), " ");
  for (const int32_t id : {-1, tokenizer->vocab_size(), tokenizer->vocab_size() + 2, 1 << 30}) {
    EXPECT_EQ(tokenizer->token_bytes(id), "");
    EXPECT_FALSE(tokenizer->is_special(id));
    EXPECT_EQ(*tokenizer->decode(std::vector<int32_t>{id}, false), "");
  }
}

TEST_P(Family, RandomTextRoundTrips) {
  const auto tokenizer = from_directory(GetParam());
  const bool nfc = std::string(GetParam()) == "qwen2";
  std::mt19937 rng(7);
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (int j = 0; j < 30; ++j) {
      // Up to U+07FF without the combining range, so that NFC changes nothing.
      const uint32_t code = rng() % (nfc ? 0x80 : 0x300);
      if (code < 0x80) {
        text += static_cast<char>(code);
      } else {
        text += static_cast<char>(0xC0 | code >> 6);
        text += static_cast<char>(0x80 | (code & 0x3F));
      }
    }
    const auto ids = tokenizer->encode(text, false);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*tokenizer->decode(*ids, false), text);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Family,
                         ::testing::Values("gpt2", "smollm", "llama3", "qwen2", "deepseek_v3",
                                           "deepseek_llm", "r1_distill_qwen"),
                         [](const auto& info) { return std::string(info.param); });

// The layout of DeepSeek-V3 and R1 in small: three tokens before the vocabulary, the rest after it.
TEST(Tokenizer, DeepSeekTokens) {
  for (const auto& tokenizer : {from_directory("deepseek_v3"), from_gguf("deepseek_v3")}) {
    const auto id = [&](const std::string& token) {
      const auto found = tokenizer->id_of(token);
      EXPECT_TRUE(found) << token;
      return found.value_or(-1);
    };
    EXPECT_EQ(tokenizer->bos_id(), 0);
    EXPECT_EQ(tokenizer->eos_id(), 1);
    EXPECT_EQ(id("<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>"), 0);
    EXPECT_EQ(id("<\uFF5C\u2581pad\u2581\uFF5C>"), 2);
    for (const char* name :
         {"<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>", "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
          "<\uFF5C\u2581pad\u2581\uFF5C>", "<\uFF5Cplace\u2581holder\u2581no\u25812\uFF5C>",
          "<|EOT|>"}) {
      EXPECT_TRUE(tokenizer->is_special(id(name))) << name;
    }
    std::string shown;
    std::vector<int32_t> ids;
    for (const char* name :
         {"<think>", "</think>", "<\uFF5CUser\uFF5C>", "<\uFF5CAssistant\uFF5C>",
          "<\uFF5Cfim\u2581hole\uFF5C>", "<\uFF5Ctool\u2581calls\u2581begin\uFF5C>",
          "<\uFF5Ctool\u2581output\u2581end\uFF5C>", "<\uFF5Ctool\u2581sep\uFF5C>"}) {
      EXPECT_FALSE(tokenizer->is_special(id(name))) << name;
      ids.push_back(id(name));
      ids.push_back(tokenizer->eos_id());
      shown += name;
    }
    EXPECT_EQ(*tokenizer->decode(ids, true), shown) << "only special tokens are skipped";
    // A rendered prompt has its beginning already; each marker is one token.
    const std::string prompt =
        "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C><\uFF5CUser\uFF5C>Hi<\uFF5CAssistant\uFF5C><"
        "think>\n";
    const auto encoded = tokenizer->encode(prompt, false);
    ASSERT_TRUE(encoded.ok());
    EXPECT_EQ(std::count(encoded->begin(), encoded->end(), 0), 1);
    EXPECT_EQ(*tokenizer->decode(*encoded, false), prompt);
    EXPECT_EQ((*encoded)[1], id("<\uFF5CUser\uFF5C>"));
    EXPECT_EQ((*encoded)[encoded->size() - 2], id("<think>"));
  }
}

// `deepseek-r1-qwen` is the name of the Qwen2 splitting in converted distills.
TEST(Tokenizer, DirectoriesOfR1AndDistillsCarryTheirTemplate) {
  const auto r1 = from_directory("deepseek_v3"), distill = from_directory("r1_distill_qwen");
  EXPECT_EQ(r1->chat_template(), read_text(testdata("templates/r1.jinja")));
  EXPECT_EQ(distill->chat_template(), read_text(testdata("templates/r1_distill_shipped.jinja")));
  EXPECT_EQ(distill->bos_token(), r1->bos_token());
  EXPECT_EQ(distill->eos_token(), r1->eos_token());
  EXPECT_EQ(gguf_vocabulary("r1_distill_qwen").pre, "deepseek-r1-qwen");
  EXPECT_FALSE(distill->is_special(*distill->id_of("</think>")));
}

TEST(Tokenizer, ThreadsEncodeTheSame) {
  const auto tokenizer = from_directory("deepseek_v3");
  const std::vector<std::string> corpus = read_corpus();
  std::vector<std::vector<int32_t>> expected;
  for (const std::string& text : corpus) expected.push_back(*tokenizer->encode(text, true));
  std::vector<int> wrong(4, 0);
  {
    std::vector<std::jthread> threads;
    for (size_t t = 0; t < wrong.size(); ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = 0; i < corpus.size(); ++i) {
          const size_t at = (i + t * 17) % corpus.size();
          const auto ids = tokenizer->encode(corpus[at], true);
          if (!ids.ok() || *ids != expected[at]) ++wrong[t];
          if (!tokenizer->decode(expected[at], true).ok()) ++wrong[t];
        }
      });
    }
  }
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(Tokenizer, RefusesInvalidUtf8) {
  const auto tokenizer = from_directory("gpt2");
  const auto ids = tokenizer->encode("ab\xFF", false);
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(ids.error().message.find("byte 2"), std::string::npos) << ids.error().message;
}

// A directory with the given files; gone with the object.
class Directory {
 public:
  explicit Directory(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              ("capstan_text_" + name + "_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  void copy(const std::string& family) const {
    write("tokenizer.json", read_text(testdata("tokenizers/" + family + "/tokenizer.json")));
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

void expect_error(const Result<std::shared_ptr<const Tokenizer>>& result, ErrorCode code,
                  const std::string& part) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, code) << result.error().message;
  EXPECT_NE(result.error().message.find(part), std::string::npos) << result.error().message;
}

TEST(Tokenizer, DirectoryErrors) {
  expect_error(Tokenizer::from_directory("/nonexistent"), ErrorCode::kNotFound, "/nonexistent");
  const Directory d("errors");
  expect_error(Tokenizer::from_directory(d.path()), ErrorCode::kNotFound, "no tokenizer.json");
  d.write("tokenizer.json", "{\"version\":");
  expect_error(Tokenizer::from_directory(d.path()), ErrorCode::kInvalidArgument, d.path());
  d.write("tokenizer.json", R"({"model":{"type":"WordPiece","unk_token":"?","vocab":{"a":0},
    "continuing_subword_prefix":"##","max_input_chars_per_word":100}})");
  expect_error(Tokenizer::from_directory(d.path()), ErrorCode::kInvalidArgument, "not BPE");
  d.write("tokenizer.json", R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[]}})");
  expect_error(Tokenizer::from_directory(d.path()), ErrorCode::kInvalidArgument, "ByteLevel");
  d.write("tokenizer.json", R"({"decoder":{"type":"ByteLevel","add_prefix_space":true,
    "trim_offsets":true,"use_regex":true},"model":{"type":"BPE","vocab":{"a":4000000000},
    "merges":[]}})");
  expect_error(Tokenizer::from_directory(d.path()), ErrorCode::kInvalidArgument, "4000000000");
  d.copy("gpt2");
  d.write("tokenizer_config.json", "[1]");
  expect_error(Tokenizer::from_directory(d.path()), ErrorCode::kDataLoss, "tokenizer_config.json");
  d.write("tokenizer_config.json", R"({"add_bos_token":true,"bos_token":"<nowhere>"})");
  expect_error(Tokenizer::from_directory(d.path()), ErrorCode::kInvalidArgument, "<nowhere>");
}

TEST(Tokenizer, ConfigurationForms) {
  const Directory d("config");
  d.copy("gpt2");
  auto tokenizer = Tokenizer::from_directory(d.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ((*tokenizer)->bos_id(), -1);
  EXPECT_EQ((*tokenizer)->chat_template(), "");

  d.write("special_tokens_map.json", R"({"bos_token":"<|im_start|>"})");
  d.write("tokenizer_config.json", R"({"eos_token":null,"chat_template":"plain"})");
  tokenizer = Tokenizer::from_directory(d.path());
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->bos_token(), "<|im_start|>");
  EXPECT_EQ((*tokenizer)->eos_token(), "");
  EXPECT_EQ((*tokenizer)->chat_template(), "plain");
  EXPECT_EQ((*tokenizer)->tool_chat_template(), "plain");
  EXPECT_EQ((*tokenizer)->encode("", true)->size(), 0u);

  d.write("tokenizer_config.json",
          R"({"add_eos_token":true,"eos_token":"<|im_end|>","chat_template":
             [{"name":"tool_use","template":"T"},{"name":"default","template":"D"}]})");
  tokenizer = Tokenizer::from_directory(d.path());
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->chat_template(), "D");
  EXPECT_EQ((*tokenizer)->tool_chat_template(), "T");
  EXPECT_EQ(*(*tokenizer)->encode("", true), std::vector<int32_t>{(*tokenizer)->eos_id()});

  d.write("chat_template.jinja", "J");
  d.write("additional_chat_templates/tool_use.jinja", "U");
  tokenizer = Tokenizer::from_directory(d.path());
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->chat_template(), "J");
  EXPECT_EQ((*tokenizer)->tool_chat_template(), "U");

  // "false" leaves the file's own post-processor; transformers ignores the key beside a
  // tokenizer.json.
  json::object file = read_json("tokenizers/gpt2/tokenizer.json").as_object();
  file["post_processor"] = json::parse(
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|im_start|>","type_id":0}},
          {"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},
          {"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<|im_start|>":
          {"id":"<|im_start|>","ids":[621],"tokens":["<|im_start|>"]}}})");
  d.write("tokenizer.json", json::serialize(file));
  d.write("tokenizer_config.json", R"({"add_bos_token":false,"bos_token":"<|im_start|>"})");
  tokenizer = Tokenizer::from_directory(d.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(*(*tokenizer)->encode("", true), std::vector<int32_t>{(*tokenizer)->bos_id()});
}

TEST(Tokenizer, SavedTruncationIsIgnored) {
  json::object file = read_json("tokenizers/gpt2/tokenizer.json").as_object();
  file["truncation"] = {
      {"direction", "Right"}, {"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  const Directory d("truncation");
  d.write("tokenizer.json", json::serialize(file));
  const auto tokenizer = Tokenizer::from_directory(d.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_GT((*tokenizer)->encode("one two three four five", false)->size(), 4u);
}

TEST(Tokenizer, GgufErrors) {
  GgufVocabulary v = gguf_vocabulary("gpt2");
  v.pre = "tekken";
  expect_error(Tokenizer::from_gguf(v), ErrorCode::kInvalidArgument, "\"tekken\"");
  expect_error(Tokenizer::from_gguf(v), ErrorCode::kInvalidArgument, "deepseek-r1-qwen");
  v = gguf_vocabulary("gpt2");
  v.model = "llama";
  expect_error(Tokenizer::from_gguf(v), ErrorCode::kInvalidArgument, "\"llama\"");
  v = gguf_vocabulary("gpt2");
  v.token_types.pop_back();
  expect_error(Tokenizer::from_gguf(v), ErrorCode::kDataLoss, "token_type");
  v = gguf_vocabulary("gpt2");
  v.eos_id = 100000;
  expect_error(Tokenizer::from_gguf(v), ErrorCode::kDataLoss, "eos_token_id is 100000");
  v = gguf_vocabulary("gpt2");
  v.tokens[3] = "\xC3";
  expect_error(Tokenizer::from_gguf(v), ErrorCode::kDataLoss, "tokens[3]");
  v = gguf_vocabulary("gpt2");
  v.merges[5] = "zzz qqq";
  expect_error(Tokenizer::from_gguf(v), ErrorCode::kInvalidArgument, "zzz");
  v.merges[5] = "nospace";
  EXPECT_FALSE(Tokenizer::from_gguf(v).ok());
  v.tokens.clear();
  v.token_types.clear();
  expect_error(Tokenizer::from_gguf(v), ErrorCode::kDataLoss, "empty");
}

TEST(Tokenizer, LlamaAddsBosUnlessTheFileForbids) {
  GgufVocabulary v = gguf_vocabulary("llama3");
  v.add_bos.reset();
  EXPECT_EQ(*(*Tokenizer::from_gguf(v))->encode("", true), std::vector<int32_t>{v.bos_id});
  v.add_bos = false;
  EXPECT_TRUE((*Tokenizer::from_gguf(v))->encode("", true)->empty());
}

}  // namespace
}  // namespace capstan::text
