// The tokenizer of the model that newcomers start with, from its GGUF file.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "text/chat_template.h"
#include "text/gguf_vocabulary.h"
#include "text/text_goldens.h"

namespace capstan::text {
namespace {

class SmolLm2 : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path = find();
    if (path.empty()) {
      GTEST_SKIP() << "no GGUF file in " << directory()
                   << "; `make model` or `capstan pull` puts one there";
    }
    static const Result<std::shared_ptr<const Tokenizer>> loaded =
        Tokenizer::from_gguf(GgufKeys(path).vocabulary());
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    tokenizer_ = *loaded;
  }

  static std::filesystem::path directory() {
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    const std::filesystem::path base =
        cache != nullptr ? std::filesystem::path(cache)
                         : std::filesystem::path(home != nullptr ? home : "") / ".cache";
    return base / "capstan" / "models" / "SmolLM2-135M-Instruct";
  }

  static std::string find() {
    std::error_code ec;
    for (const auto& entry : std::filesystem::directory_iterator(directory(), ec)) {
      if (entry.path().extension() == ".gguf") return entry.path().string();
    }
    return {};
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_F(SmolLm2, Names) {
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
  EXPECT_EQ(tokenizer_->bos_id(), 1);
  EXPECT_EQ(tokenizer_->eos_id(), 2);
  EXPECT_EQ(tokenizer_->bos_token(), "<|im_start|>");
  EXPECT_EQ(tokenizer_->id_of("<empty_output>"), 16);
  EXPECT_TRUE(tokenizer_->is_special(2));
  EXPECT_FALSE(tokenizer_->is_special(17));
  EXPECT_EQ(tokenizer_->token_bytes(49152), "");
}

TEST_F(SmolLm2, IdsAreThoseOfHuggingFace) {
  const auto file = read_json("smollm2_ids.json").as_object();
  const auto& golden = file.at("ids").as_array();
  const auto& changed = file.at("changed").as_object();
  const auto corpus = read_corpus();
  ASSERT_EQ(golden.size(), corpus.size());
  for (size_t i = 0; i < corpus.size(); ++i) {
    const auto ids = tokenizer_->encode(corpus[i], false);
    ASSERT_TRUE(ids.ok()) << ids.error().message;
    EXPECT_EQ(*ids, to_ids(golden[i])) << "text " << i << ": " << corpus[i];
    const boost::json::value* other = changed.if_contains(std::to_string(i));
    EXPECT_EQ(*tokenizer_->decode(*ids, false),
              other == nullptr ? corpus[i] : boost::json::value_to<std::string>(*other));
  }
}

TEST_F(SmolLm2, EveryTokenRoundTrips) {
  int checked = 0;
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const std::string bytes(tokenizer_->token_bytes(id));
    ASSERT_FALSE(bytes.empty()) << id;
    if (first_invalid_utf8(bytes)) continue;  // part of a character
    const auto ids = tokenizer_->encode(bytes, false);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*tokenizer_->decode(*ids, false), bytes) << id;
    ++checked;
  }
  EXPECT_GT(checked, 48000);
}

TEST_F(SmolLm2, ChatTemplateRenders) {
  auto chat = ChatTemplate::compile(tokenizer_->chat_template(),
                                    {tokenizer_->bos_token(), tokenizer_->eos_token()});
  ASSERT_TRUE(chat.ok()) << chat.error().message;
  EXPECT_FALSE((*chat)->forms().content_parts);
  const auto text = (*chat)->render(
      R"({"messages":[{"role":"user","content":"Hi"}],"add_generation_prompt":true})");
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_EQ(*text,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

// Vocabularies of llama.cpp's own test suite, with ids that Hugging Face computed for them.
TEST(GgmlVocabularies, IdsAreThoseOfHuggingFace) {
  const char* directory = std::getenv("CAPSTAN_GGML_VOCABS");
  if (directory == nullptr) {
    GTEST_SKIP() << "CAPSTAN_GGML_VOCABS is not set; it names llama.cpp's models/ directory";
  }
  int compared = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::filesystem::path& path = entry.path();
    const std::string inputs_path = path.string() + ".inp";
    if (path.extension() != ".gguf" || !std::filesystem::exists(inputs_path)) continue;
    const auto tokenizer = Tokenizer::from_gguf(GgufKeys(path.string()).vocabulary());
    if (!tokenizer.ok()) {
      std::cout << path.filename().string() << ": " << tokenizer.error().message << "\n";
      continue;
    }
    const std::string inputs = read_text(inputs_path);
    std::ifstream outputs(path.string() + ".out");
    const std::string separator = "\n__ggml_vocab_test__\n";
    size_t begin = 0;
    for (std::string line; std::getline(outputs, line);) {
      const size_t end = std::min(inputs.find(separator, begin), inputs.size());
      std::istringstream numbers(line);
      const std::vector<int32_t> expected{std::istream_iterator<int32_t>(numbers), {}};
      const std::string input = inputs.substr(begin, end - begin);
      const auto ids = (*tokenizer)->encode(input, false);
      ASSERT_TRUE(ids.ok()) << ids.error().message;
      EXPECT_EQ(*ids, expected) << path << ": " << input;
      begin = end + separator.size();
      ++compared;
    }
  }
  EXPECT_GT(compared, 0);
}

}  // namespace
}  // namespace capstan::text
