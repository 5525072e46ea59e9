#include "text/reasoning_parser.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace capstan::text {
namespace {

const ReasoningFormat& r1() { return *find_reasoning_format("deepseek-r1"); }

ReasoningText parse(const std::vector<std::string>& pieces, bool inside,
                    const ReasoningFormat& format = r1()) {
  ReasoningParser parser(format, inside);
  ReasoningText out;
  for (const std::string& piece : pieces) parser.push(piece, &out);
  parser.finish(&out);
  return out;
}

struct Case {
  std::string text;
  bool inside;
  std::string reasoning, content;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      // The prompt ended with the opening tag.
      {"a</think>\n\nb", true, "a", "b"},
      {"a\n</think>\n\nb\n", true, "a\n", "b\n"},
      {"<think>a</think>b", true, "a", "b"},
      {"<think>\n<think>a</think>b", true, "<think>a", "b"},
      {" \n<think>\na</think>b", true, "a", "b"},
      {"a", true, "a", ""},
      {"", true, "", ""},
      {"<think>", true, "", ""},
      {"<thi", true, "<thi", ""},
      {" a", true, " a", ""},
      {"\n\n", true, "", ""},
      {"\n\na", true, "a", ""},
      {"</think>b", true, "", "b"},
      {"\n</think>\n\n", true, "", ""},
      {"\r\n</think>\r\n b", true, "", " b"},
      {"a</think>b</think>c<think>d", true, "a", "b</think>c<think>d"},
      {"a < b </ c </thin> </thinker></think>d", true, "a < b </ c </thin> </thinker>", "d"},
      {"</</think>x", true, "</", "x"},
      {"</think</think>x", true, "</think", "x"},
      {"a</thin", true, "a</thin", ""},
      {"caf\u00e9 \U0001F600</think>\u4f60\u597d", true, "caf\u00e9 \U0001F600", "\u4f60\u597d"},
      // It did not: thinking begins with an opening tag or not at all.
      {"<think>a</think>b", false, "a", "b"},
      {"\n<think>\n\na\n</think>\n\nb", false, "a\n", "b"},
      {"<think>\n\n</think>\n\nb", false, "", "b"},
      {"<think>a", false, "a", ""},
      {"a</think>b", false, "", "a</think>b"},
      {"\n\n b", false, "", "\n\n b"},
      {"<thin air", false, "", "<thin air"},
      {" <thi", false, "", " <thi"},
      {"\n", false, "", "\n"},
      {"b <think>c</think>", false, "", "b <think>c</think>"},
      {"", false, "", ""},
  };
  return all;
}

TEST(ReasoningParser, Cases) {
  for (const Case& c : cases()) {
    const ReasoningText whole = parse({c.text}, c.inside);
    EXPECT_EQ(whole.reasoning, c.reasoning) << c.text << ", inside " << c.inside;
    EXPECT_EQ(whole.content, c.content) << c.text << ", inside " << c.inside;
  }
}

TEST(ReasoningParser, EveryCutInTwoAndEveryByteAloneGiveTheSame) {
  for (const Case& c : cases()) {
    for (size_t cut = 0; cut <= c.text.size(); ++cut) {
      const ReasoningText cut_text = parse({c.text.substr(0, cut), c.text.substr(cut)}, c.inside);
      EXPECT_EQ(cut_text.reasoning, c.reasoning) << c.text << " at " << cut;
      EXPECT_EQ(cut_text.content, c.content) << c.text << " at " << cut;
    }
    std::vector<std::string> bytes;
    for (const char byte : c.text) bytes.emplace_back(1, byte);
    const ReasoningText single = parse(bytes, c.inside);
    EXPECT_EQ(single.reasoning, c.reasoning) << c.text;
    EXPECT_EQ(single.content, c.content) << c.text;
  }
}

/// The definition, on the whole text.
ReasoningText reference(const std::string& text, bool inside, const ReasoningFormat& format) {
  const auto skip = [&](size_t at, std::string_view set) {
    return std::min(text.find_first_not_of(set, at), text.size());
  };
  const size_t first = skip(0, " \t\r\n");
  size_t begin = 0;
  if (std::string_view(text).substr(first).starts_with(format.open)) {
    begin = first + format.open.size();
  } else if (!inside) {
    return {"", text};
  }
  const size_t end = text.find(format.close, begin);
  const size_t start = skip(begin, "\r\n");
  if (end == std::string::npos) return {text.substr(start), ""};
  const size_t content = skip(end + format.close.size(), "\r\n");
  return {start < end ? text.substr(start, end - start) : "", text.substr(content)};
}

TEST(ReasoningParser, AnyTextInAnyPiecesEqualsTheDefinition) {
  std::mt19937 random(20250120);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  for (const char* name : {"deepseek-r1", "kimi"}) {
    const ReasoningFormat& format = *find_reasoning_format(name);
    const std::string open(format.open), close(format.close);
    // Tags, their parts and what may come between them.
    const std::vector<std::string> words = {open,
                                            close,
                                            open.substr(0, open.size() - 1),
                                            close.substr(0, close.size() - 1),
                                            open.substr(0, 2),
                                            close.substr(0, 3),
                                            close.substr(1),
                                            "<",
                                            "\n",
                                            "\r\n",
                                            " ",
                                            "x",
                                            "\u00e9"};
    for (int round = 0; round < 4000; ++round) {
      std::string text;
      for (size_t n = below(9); n > 0; --n) text += words[below(words.size())];
      const bool inside = below(2) == 0;
      std::vector<std::string> pieces;
      for (size_t at = 0; at < text.size();) {
        const size_t length = 1 + below(7);
        pieces.push_back(text.substr(at, length));
        at += length;
        if (below(8) == 0) pieces.emplace_back();
      }
      const ReasoningText want = reference(text, inside, format),
                          got = parse(pieces, inside, format);
      ASSERT_EQ(got.reasoning, want.reasoning) << name << ' ' << inside << ": " << text;
      ASSERT_EQ(got.content, want.content) << name << ' ' << inside << ": " << text;
    }
  }
}

TEST(ReasoningParser, TextGetsOutAsSoonAsItIsDecided) {
  ReasoningParser parser(r1(), true);
  ReasoningText out;
  parser.push("Let me", &out);
  EXPECT_EQ(out.reasoning, "Let me");
  parser.push(" see: 1 <", &out);
  EXPECT_EQ(out.reasoning, "Let me see: 1 ");
  parser.push(" 2.</", &out);
  EXPECT_EQ(out.reasoning, "Let me see: 1 < 2.");
  EXPECT_TRUE(parser.thinking());
  parser.push("think>", &out);
  EXPECT_FALSE(parser.thinking());
  EXPECT_TRUE(parser.closed());
  parser.push("\n\nYes", &out);
  EXPECT_EQ(out.content, "Yes");
}

TEST(ReasoningParser, ThinkingIsFalseUntilItIsDecided) {
  ReasoningParser parser(r1(), false);
  ReasoningText out;
  EXPECT_FALSE(parser.thinking());
  parser.push("<thi", &out);
  EXPECT_FALSE(parser.thinking());
  parser.push("nk>", &out);
  EXPECT_TRUE(parser.thinking());
  EXPECT_FALSE(parser.closed());
  ReasoningParser forced(r1(), true);
  EXPECT_TRUE(forced.thinking());
}

TEST(ReasoningFormats, NamesOfSglang) {
  for (const char* name : {"deepseek-r1", "deepseek-v3", "qwen3", "qwen3-thinking", "glm45",
                           "interns1", "step3", "minimax", "nemotron_3", "kimi"}) {
    const ReasoningFormat* format = find_reasoning_format(name);
    ASSERT_NE(format, nullptr) << name;
    EXPECT_EQ(format->name, name);
    EXPECT_NE(known_reasoning_formats().find(name), std::string::npos);
  }
  for (const char* name : {"", "deepseek", "DeepSeek-R1", "gpt-oss", "mistral"}) {
    EXPECT_EQ(find_reasoning_format(name), nullptr) << name;
  }
}

TEST(ReasoningFormats, WhatThePromptEndsWithDecides) {
  // R1 and distills; V3.1 thinking; V3.1 not thinking; Qwen3 with enable_thinking false; R1-0528.
  EXPECT_TRUE(prompt_opens_thinking(r1(), "<U>hi<A><think>\n"));
  EXPECT_TRUE(prompt_opens_thinking(r1(), "<U>hi<A><think>"));
  EXPECT_FALSE(prompt_opens_thinking(r1(), "<U>hi<A></think>"));
  EXPECT_FALSE(prompt_opens_thinking(r1(), "assistant\n<think>\n\n</think>\n\n"));
  EXPECT_FALSE(prompt_opens_thinking(r1(), "<U>what is <think><A>"));
  EXPECT_FALSE(prompt_opens_thinking(r1(), ""));
  EXPECT_FALSE(prompt_opens_thinking(r1(), " \n"));
  EXPECT_TRUE(prompt_opens_thinking(*find_reasoning_format("qwen3-thinking"), "<U>hi<A>"));
}

TEST(ReasoningFormats, AnUnfinishedAnswerContinues) {
  EXPECT_TRUE(prefix_opens_thinking(r1(), "<think>\nHm", false));
  EXPECT_TRUE(prefix_opens_thinking(r1(), "Hm", true));
  EXPECT_FALSE(prefix_opens_thinking(r1(), "Hm", false));
  EXPECT_FALSE(prefix_opens_thinking(r1(), "Hm</think>\n\nThe", true));
  EXPECT_FALSE(prefix_opens_thinking(r1(), "<think>Hm</think>The", false));
}

}  // namespace
}  // namespace capstan::text
