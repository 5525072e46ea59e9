#include "engine/sampling_params.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace capstan::engine {
namespace {

struct Case {
  const char* param;
  const char* value;  // must appear in the message
  std::function<void(SamplingParams&)> set;
};

TEST(SamplingParams, RangeErrorsNameFieldAndValue) {
  const Case cases[] = {
      {"max_new_tokens", "-1", [](auto& p) { p.max_new_tokens = -1; }},
      {"min_new_tokens", "-2", [](auto& p) { p.min_new_tokens = -2; }},
      {"min_new_tokens", "129", [](auto& p) { p.min_new_tokens = 129; }},
      {"temperature", "-1", [](auto& p) { p.temperature = -1; }},
      {"temperature", "nan", [](auto& p) { p.temperature = std::nan(""); }},
      {"temperature", "inf", [](auto& p) { p.temperature = INFINITY; }},
      {"top_p", "0", [](auto& p) { p.top_p = 0; }},
      {"top_p", "1.1", [](auto& p) { p.top_p = 1.1; }},
      {"top_k", "0", [](auto& p) { p.top_k = 0; }},
      {"top_k", "-2", [](auto& p) { p.top_k = -2; }},
      {"min_p", "2", [](auto& p) { p.min_p = 2; }},
      {"frequency_penalty", "3", [](auto& p) { p.frequency_penalty = 3; }},
      {"presence_penalty", "-2.5", [](auto& p) { p.presence_penalty = -2.5; }},
      {"repetition_penalty", "0", [](auto& p) { p.repetition_penalty = 0; }},
      {"repetition_penalty", "2.1", [](auto& p) { p.repetition_penalty = 2.1; }},
      {"top_logprobs", "-1", [](auto& p) { p.top_logprobs = -1; }},
      {"logprob_start_len", "-2", [](auto& p) { p.logprob_start = -2; }},
      {"logit_bias", "100",
       [](auto& p) {
         p.logit_bias = {{100, 1.0f}};
       }},
      {"logit_bias", "inf",
       [](auto& p) {
         p.logit_bias = {{1, INFINITY}};
       }},
      {"stop_token_ids", "-7", [](auto& p) { p.stop_token_ids = {-7}; }},
      {"token_ids_logprob", "101",
       [](auto& p) {
         p.token_ids_logprob = {5, 101};
       }},
  };
  for (const Case& c : cases) {
    SamplingParams p;
    c.set(p);
    const Status status = validate(p, 100);
    ASSERT_FALSE(status.ok()) << c.param << " " << c.value;
    EXPECT_EQ(status.error().code, ErrorCode::kOutOfRange);
    EXPECT_EQ(status.error().param, c.param);
    EXPECT_NE(status.error().message.find(c.param), std::string::npos) << status.error().message;
    EXPECT_NE(status.error().message.find(c.value), std::string::npos) << status.error().message;
  }
}

TEST(SamplingParams, LimitsThemselvesAreAllowed) {
  SamplingParams p;
  EXPECT_TRUE(validate(p, 100).ok());
  p.max_new_tokens = p.min_new_tokens = 0;
  p.temperature = 0;
  p.top_p = 1;
  p.top_k = 1;
  p.min_p = 1;
  p.frequency_penalty = -2;
  p.presence_penalty = 2;
  p.repetition_penalty = 2;
  p.logit_bias = {{0, -100.0f}, {99, 100.0f}};
  p.stop_token_ids = {0, 99};
  p.token_ids_logprob = {99};
  p.logprob_start = 0;
  EXPECT_TRUE(validate(p, 100).ok());
}

}  // namespace
}  // namespace capstan::engine
