// The ranks of one process as a group: who is called slow, and how it ends.
#include "app/rank_group.h"

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>

namespace capstan::app {
namespace {

/// Log lines while it lives.
class LogLines {
 public:
  LogLines() : before_(spdlog::default_logger()) {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(text_);
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
  }
  ~LogLines() { spdlog::set_default_logger(before_); }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::logger> before_;
};

std::unique_ptr<RankGroup> group_of(int ranks) {
  ParallelOptions options;
  options.ranks = ranks;
  auto group = RankGroup::create(options, {}, [] { return false; });
  EXPECT_TRUE(group.ok()) << group.error().message;
  return std::move(group).value();
}

TEST(RankGroup, ARankThatStaysSlowIsNamedOnce) {
  const auto group = group_of(4);
  const LogLines log;
  const std::vector<double> slow = {0.010, 0.011, 0.031, 0.010};
  group->note_timings(slow);
  group->note_timings(slow);
  EXPECT_EQ(log.text(), "");
  group->note_timings(slow);
  EXPECT_NE(log.text().find("Rank 2 is slow and holds up the others: it computes 31.00 ms a step"),
            std::string::npos)
      << log.text();
  const std::string first = log.text();
  for (int i = 0; i < 10; ++i) group->note_timings(slow);
  EXPECT_EQ(log.text(), first) << "once a minute";
  EXPECT_EQ(group->view().compute_seconds, slow);
  EXPECT_FALSE(group->ended());
}

TEST(RankGroup, PassingAndSmallDifferencesAreNobodysFault) {
  const auto group = group_of(2);
  const LogLines log;
  for (int i = 0; i < 9; ++i) {
    group->note_timings({0.010, i % 3 == 2 ? 0.011 : 0.030});  // never three times in a row
    group->note_timings({0.0001, 0.0002});                     // twice as long, of next to nothing
  }
  EXPECT_EQ(log.text(), "");
}

TEST(RankGroup, AFailedRankEndsTheGroupWithItsReason) {
  const auto group = group_of(2);
  std::string told;
  group->on_end([&](const comm::GroupEnd& end) { told = end.describe(); });
  const Error explained = group->fail_and_explain(
      1, Error{ErrorCode::kResourceExhausted, "not enough memory for 7 GB"});
  EXPECT_NE(explained.message.find("not enough memory for 7 GB"), std::string::npos);
  ASSERT_TRUE(group->ended());
  EXPECT_EQ(group->end()->rank, 1);
  EXPECT_NE(told.find("rank 1"), std::string::npos) << told;
  EXPECT_NE(group->view().unready().find("not enough memory for 7 GB"), std::string::npos);
}

}  // namespace
}  // namespace capstan::app
