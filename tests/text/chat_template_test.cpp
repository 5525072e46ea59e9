// Chat templates against transformers: every template of tests/testdata/text/templates with every
// conversation, as tools/text_templates.py rendered them.
#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <thread>

#include "text/text_goldens.h"

namespace capstan::text {
namespace {

namespace json = boost::json;

const ChatTemplate::Tokens kTokens = {"<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>",
                                      "<\uFF5Cend\u2581of\u2581sentence\uFF5C>"};

std::unique_ptr<ChatTemplate> compiled(const std::string& source) {
  auto chat = ChatTemplate::compile(source, kTokens);
  if (!chat.ok()) throw std::runtime_error(chat.error().message);
  return std::move(chat).value();
}

Result<std::string> rendered(const std::string& source, const std::string& context) {
  return compiled(source)->render(context);
}

constexpr const char* kHi = R"({"messages":[{"role":"user","content":"Hi"}]})";

/// `errors_too`: what fails in Python must fail here. The engine is more forgiving in one respect:
/// a loop over null is empty.
void expect_goldens(const std::filesystem::path& directory, bool errors_too) {
  const json::array conversations =
      json::parse(read_text((directory / "conversations.json").string())).as_array();
  const json::object renderings =
      json::parse(read_text((directory / "renderings.json").string())).as_object();
  ASSERT_FALSE(renderings.empty());
  for (const auto& entry : renderings) {
    const std::string name(entry.key());
    const auto chat =
        ChatTemplate::compile(read_text((directory / (name + ".jinja")).string()), kTokens);
    EXPECT_TRUE(chat.ok()) << name << ": " << chat.error().message;
    for (size_t i = 0; chat.ok() && i < conversations.size(); ++i) {
      const json::object& expected = entry.value().as_array()[i].as_object();
      const Result<std::string> got = (*chat)->render(json::serialize(conversations[i]));
      const std::string where = name + ", conversation " + std::to_string(i);
      if (const json::value* text = expected.if_contains("text")) {
        EXPECT_TRUE(got.ok()) << where << ": " << got.error().message;
        if (!got.ok()) continue;
        EXPECT_EQ(*got, std::string_view(text->as_string())) << where;
        continue;
      }
      if (!errors_too && !expected.contains("raised")) continue;
      EXPECT_FALSE(got.ok()) << where << " gave: " << *got;
      if (got.ok()) continue;
      EXPECT_EQ(got.error().code, ErrorCode::kInvalidArgument) << where;
      if (const json::value* raised = expected.if_contains("raised")) {
        EXPECT_EQ(got.error().message, std::string_view(raised->as_string())) << where;
      }
    }
  }
}

TEST(ChatTemplate, RendersAsTransformers) { expect_goldens(testdata("templates"), true); }

// Templates of shipped models are not part of this repository; tools/text_templates.py DIRECTORY
// prepares a directory of them.
TEST(ChatTemplate, RendersOtherTemplatesAsTransformers) {
  const char* directory = std::getenv("CAPSTAN_CHAT_TEMPLATES");
  if (directory == nullptr) {
    GTEST_SKIP() << "CAPSTAN_CHAT_TEMPLATES is not set; it names a directory prepared by "
                    "tools/text_templates.py";
  }
  expect_goldens(directory, false);
}

TEST(ChatTemplate, DetectsContentParts) {
  const auto wants = [](const std::string& name) {
    return compiled(read_text(testdata("templates/" + name + ".jinja")))->forms().content_parts;
  };
  EXPECT_TRUE(wants("parts"));
  for (const char* name : {"chatml", "chatml_tools", "llama3", "deepseek_v3", "r1_distill"}) {
    EXPECT_FALSE(wants(name)) << name;
  }
  // Accepts both: a string is enough.
  EXPECT_FALSE(compiled("{% for m in messages %}{% if m.content is string %}{{ m.content }}"
                        "{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}")
                   ->forms()
                   .content_parts);
  EXPECT_FALSE(compiled("{{ raise_exception('no') }}")->forms().content_parts);
}

// Shipped DeepSeek templates concatenate arguments with text and take an assistant's message for
// one with calls only if its content is null.
TEST(ChatTemplate, DetectsTheFormsOfToolCalls) {
  const auto forms = [](const std::string& name) {
    return compiled(read_text(testdata("templates/" + name + ".jinja")))->forms();
  };
  EXPECT_TRUE(forms("r1_distill_shipped").null_content);
  EXPECT_TRUE(forms("r1_distill_shipped").string_arguments);
  EXPECT_FALSE(forms("r1").null_content);
  EXPECT_TRUE(forms("r1").string_arguments);
  for (const char* name : {"r1_distill", "chatml", "chatml_tools", "llama3", "deepseek_v3"}) {
    EXPECT_FALSE(forms(name).null_content) << name;
    EXPECT_FALSE(forms(name).string_arguments) << name;
  }
  const auto raises = compiled("{{ raise_exception('no') }}")->forms();
  EXPECT_FALSE(raises.null_content || raises.string_arguments);
}

// The prompts of DeepSeek's own examples, letter by letter: distills as shipped in February 2025,
// and where R1 of that time differs.
TEST(ChatTemplate, DeepSeekPrompts) {
  const std::string B = kTokens.bos, E = kTokens.eos, U = "<\uFF5CUser\uFF5C>",
                    A = "<\uFF5CAssistant\uFF5C>";
  const auto tool = [](const std::string& what) { return "<\uFF5Ctool\u2581" + what + "\uFF5C>"; };
  const std::string call = tool("calls\u2581begin") + tool("call\u2581begin") + "function" +
                           tool("sep") + "f\n```json\n{\"a\":1}\n```" + tool("call\u2581end");
  const std::string output = tool("outputs\u2581begin") + tool("output\u2581begin") + "r" +
                             tool("output\u2581end") + tool("outputs\u2581end");
  const struct {
    std::string messages, distill, r1;
  } cases[] = {
      {R"([{"role":"system","content":"s1"},{"role":"user","content":"q1"},
           {"role":"assistant","content":"<think>\nr\n</think>\n\na1"},
           {"role":"user","content":"q2"}])",
       B + "s1" + U + "q1" + A + "\n\na1" + E + U + "q2" + A + "<think>\n", ""},
      {R"([{"role":"user","content":"q"},{"role":"assistant","content":"a</think>b</think>c"},
           {"role":"user","content":"q2"}])",
       B + U + "q" + A + "c" + E + U + "q2" + A + "<think>\n", ""},
      {R"([{"role":"system","content":"s1"},{"role":"system","content":"s2"},
           {"role":"user","content":"q"}])",
       B + "s2" + U + "q" + A + "<think>\n", B + "s1\n\ns2" + U + "q" + A + "<think>\n"},
      {R"([{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[
           {"type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},
           {"role":"tool","content":"r"}])",
       B + U + "q" + A + call + output,
       B + U + "q" + A + call + tool("calls\u2581end") + E + output},
      {R"([{"role":"user","content":"q"},
           {"role":"assistant","content":"a","reasoning_content":"never shown"},
           {"role":"user","content":"q2"}])",
       B + U + "q" + A + "a" + E + U + "q2" + A + "<think>\n", ""},
  };
  const auto distill = compiled(read_text(testdata("templates/r1_distill_shipped.jinja")));
  const auto r1 = compiled(read_text(testdata("templates/r1.jinja")));
  for (const auto& c : cases) {
    const std::string context = R"({"add_generation_prompt":true,"messages":)" + c.messages + "}";
    const auto a = distill->render(context), b = r1->render(context);
    ASSERT_TRUE(a.ok() && b.ok()) << c.messages;
    EXPECT_EQ(*a, c.distill);
    EXPECT_EQ(*b, c.r1.empty() ? c.distill : c.r1);
  }
}

TEST(ChatTemplate, SyntaxErrorNamesTheLine) {
  const auto chat = ChatTemplate::compile("a\nb\n{% if %}", kTokens);
  ASSERT_FALSE(chat.ok());
  EXPECT_EQ(chat.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(chat.error().message.find(":3"), std::string::npos) << chat.error().message;
  EXPECT_FALSE(ChatTemplate::compile("{% generation %}", kTokens).ok());
  EXPECT_FALSE(ChatTemplate::compile("{{ 'open", kTokens).ok());
  EXPECT_FALSE(ChatTemplate::compile("\xFF", kTokens).ok());
  EXPECT_FALSE(ChatTemplate::compile(std::string(100000, '(').insert(0, "{{"), kTokens).ok());
}

TEST(ChatTemplate, RaiseExceptionIsTheMessage) {
  const auto text = rendered("{{ raise_exception('roles must ' ~ 'alternate') }}", kHi);
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(text.error().message, "roles must alternate");
  const auto nested = rendered(
      "{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{% for i in [1] %}{{ f() }}"
      "{% endfor %}",
      kHi);
  ASSERT_FALSE(nested.ok());
  EXPECT_EQ(nested.error().message, "deep");
}

TEST(ChatTemplate, RuntimeErrorsSayWhere) {
  const auto text = rendered("x\n{{ messages.nothing.more }}", kHi);
  ASSERT_FALSE(text.ok());
  EXPECT_NE(text.error().message.find(":2"), std::string::npos) << text.error().message;
  EXPECT_FALSE(rendered("{{ unknown_function() }}", kHi).ok());
  EXPECT_FALSE(rendered("{{ messages.append(1) }}", kHi).ok());
  EXPECT_FALSE(rendered("{% include 'x' %}", kHi).ok());
}

TEST(ChatTemplate, EndlessTemplatesEnd) {
  const auto loop = rendered(
      "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
      "{% endfor %}{% endfor %}{% endfor %}",
      kHi);
  ASSERT_FALSE(loop.ok());
  EXPECT_NE(loop.error().message.find("does not end"), std::string::npos) << loop.error().message;
  const auto recursion = rendered("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", kHi);
  ASSERT_FALSE(recursion.ok());
  EXPECT_NE(recursion.error().message.find("recursion"), std::string::npos)
      << recursion.error().message;
}

// Values nested as deep as the instruction limit allows are printed, compared and freed without a
// stack overflow.
TEST(ChatTemplate, DeepValuesDoNotOverflowTheStack) {
  const std::string grow =
      "{% set ns = namespace(x=0, y=0) %}{% for a in range(150) %}{% for b in range(1000) %}"
      "{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}{% endfor %}{% endfor %}";
  for (const char* use : {"done", "{{ ns.x }}", "{{ ('' ~ ns.x) | length }}", "{{ ns.x == ns.y }}",
                          "{{ ns.x | tojson }}"}) {
    // Only the end matters here: an error or some text.
    const auto text =
        rendered(grow + use, json::serialize(json::object{{"messages", json::array()},
                                                          {"padding", std::string(1 << 20, 'x')}}));
    EXPECT_TRUE(text.ok() || !text.error().message.empty());
  }
}

TEST(ChatTemplate, LongConversationsFit) {
  json::array messages;
  for (int i = 0; i < 4000; ++i) {
    messages.push_back({{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", "x"}});
  }
  const auto text = rendered(read_text(testdata("templates/r1_distill.jinja")),
                             json::serialize(json::object{{"messages", messages}}));
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_GT(text->size(), 4000u * 10);
}

TEST(ChatTemplate, ContextErrors) {
  const auto chat = compiled("{{ messages[0].content }}");
  for (const char* context : {"", "{", "[]", "{}", R"({"messages":{}})", R"({"messages":[1]})",
                              "{\"messages\":[{\"content\":\"\xFF\"}]}"}) {
    const auto text = chat->render(context);
    ASSERT_FALSE(text.ok()) << context;
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  }
  std::string deep = R"({"messages":)" + std::string(100000, '[');
  EXPECT_FALSE(chat->render(deep).ok());
}

TEST(ChatTemplate, DefinesWhatTransformersDefines) {
  EXPECT_EQ(*rendered("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"
                      "{{ bos_token is defined }}{{ extra is defined }}",
                      kHi),
            "TrueTrueFalseTrueFalse");
  const auto bare = ChatTemplate::compile("{{ bos_token is defined }}", {});
  ASSERT_TRUE(bare.ok());
  EXPECT_EQ(*(*bare)->render(kHi), "False");
}

TEST(ChatTemplate, StrftimeNow) {
  const auto year = [] {
    char text[32];
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    localtime_r(&now, &parts);
    std::strftime(text, sizeof text, "%d %b %Y", &parts);
    return std::string(text);
  };
  const std::string before = year();
  const auto text = rendered("{{ strftime_now('%d %b %Y') }}{{ strftime_now('') }}", kHi);
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_TRUE(*text == before || *text == year()) << *text;
}

TEST(ChatTemplate, ThreadsRenderTheSame) {
  const auto chat = compiled(read_text(testdata("templates/chatml_tools.jinja")));
  const json::array conversations = read_json("templates/conversations.json").as_array();
  const std::string context = json::serialize(conversations[13]);
  const std::string expected = *chat->render(context);
  std::vector<int> wrong(4, 0);
  {
    std::vector<std::jthread> threads;
    for (int& count : wrong) {
      threads.emplace_back([&] {
        for (int i = 0; i < 50; ++i) {
          const auto text = chat->render(context);
          if (!text.ok() || *text != expected) ++count;
        }
      });
    }
  }
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace capstan::text
