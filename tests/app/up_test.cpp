// `capstan up`: its command line, what it reads of nodes, what it shows, and its networks' names.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "app/flags.h"
#include "app/up_group.h"
#include "app/up_network.h"
#include "app/up_options.h"
#include "app/up_process.h"
#include "app/up_status.h"

namespace capstan::app {
namespace {

UpOptions parsed(const std::vector<std::string>& args) {
  const auto result = parse_up_options(args);
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
  return result.ok() ? result->options : UpOptions{};
}

TEST(UpOptions, OwnFlagsAreTakenAndTheOthersHandedOn) {
  const UpOptions o = parsed({"--nodes", "3", "--tp=6", "--model-path", "m", "--no-namespaces",
                              "--grace=2.5", "--node-env", "1:A=b=c", "--node-flag=2:--threads=4",
                              "--node-delay", "0:1.5", "--port", "9000", "--host", "0.0.0.0"});
  EXPECT_EQ(o.nodes, 3);
  EXPECT_EQ(o.tp_size, 6);
  EXPECT_EQ(o.ranks_per_node(), 2);
  EXPECT_EQ(o.isolation, UpOptions::Isolation::kProcesses);
  EXPECT_EQ(o.grace, 2.5);
  EXPECT_EQ(o.node_environment[1], std::vector<std::string>{"A=b=c"});
  EXPECT_EQ(o.node_flags[2], std::vector<std::string>{"--threads=4"});
  EXPECT_EQ(o.node_delay, (std::vector<double>{1.5, 0, 0}));
  EXPECT_EQ(o.port, 9000);
  EXPECT_EQ(o.host, "0.0.0.0");
  EXPECT_EQ(o.serve_args, (std::vector<std::string>{"--tp=6", "--model-path", "m", "--port", "9000",
                                                    "--host", "0.0.0.0"}));
}

TEST(UpOptions, WithoutTpEachNodeIsARank) {
  EXPECT_EQ(parsed({"--nodes", "3"}).tp_size, 3);
  EXPECT_EQ(parsed({"--nodes", "2", "--tp", "8"}).ranks_per_node(), 4);
}

TEST(UpOptions, BadOnesSayWhatIsWrongAndWhatToDo) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"--nodes", "0"}, "'0'"},
      {{"--nodes", "two"}, "'two'"},
      {{"--nodes", "201"}, "200"},
      {{"--nodes"}, "needs a value"},
      {{"--nodes", "2", "--tp", "3"}, "multiple"},
      {{"--tp", "0"}, "0 is not in"},
      {{"--nnodes", "2"}, "--nodes"},
      {{"--node-rank", "1"}, "--node-flag"},
      {{"--dist-init-addr", "a:1"}, "capstan serve"},
      {{"--node-env", "A=b"}, "NODE:NAME=VALUE"},
      {{"--node-env", "7:A=b"}, "node 7"},
      {{"--node-env", "1:=b"}, "NODE:NAME=VALUE"},
      {{"--node-flag", "1:threads"}, "NODE:--FLAG=VALUE"},
      {{"--node-delay", "1:soon"}, "NODE:SECONDS"},
      {{"--node-delay", "1:-1"}, "NODE:SECONDS"},
      {{"--grace", "nan"}, "'nan'"},
      {{"--print-nodes", "xml"}, "json"},
      {{"--namespaces=yes"}, "switch"},
      {{"--port", "70000"}, "70000"},
      {{"--nosuch-flag"}, "nosuch"},
  };
  for (const auto& [args, text] : cases) {
    const auto result = parse_up_options(args);
    ASSERT_FALSE(result.ok()) << text;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(result.error().message.find(text), std::string::npos) << result.error().message;
  }
}

TEST(UpOptions, HelpNamesEveryOwnFlag) {
  const std::string help = up_help_text();
  for (const char* flag : {"--nodes", "--no-namespaces", "--namespaces", "--grace", "--node-env",
                           "--node-flag", "--node-delay", "--print-nodes"}) {
    EXPECT_NE(help.find("\n  " + std::string(flag)), std::string::npos) << flag;
  }
}

TEST(UpOptions, ANodesCommandLineIsServes) {
  const UpOptions o = parsed({"--nodes", "2", "--tp", "4", "--port", "1", "--host", "0.0.0.0",
                              "--node-flag", "1:--threads=3"});
  const auto args = node_arguments(o, 1, {"198.18.0.2:20000", "127.0.0.1", 30001});
  ASSERT_EQ(args[0], "serve");
  const auto flags = parse_flags({args.begin() + 1, args.end()});
  ASSERT_TRUE(flags.ok()) << flags.error().message;
  EXPECT_EQ(flags->integer("nnodes"), 2);
  EXPECT_EQ(flags->integer("node-rank"), 1);
  EXPECT_EQ(flags->integer("tp-size"), 4);
  EXPECT_EQ(flags->text("dist-init-addr"), "198.18.0.2:20000");
  EXPECT_EQ(flags->text("host"), "127.0.0.1");
  EXPECT_EQ(flags->integer("port"), 30001);
  EXPECT_EQ(flags->integer("threads"), 3);
  EXPECT_TRUE(flags->boolean("enable-metrics"));
  // A node alone is an ordinary server.
  const auto one = node_arguments(parsed({"--nodes", "1"}), 0, {"", "127.0.0.1", 30000});
  EXPECT_EQ(std::count(one.begin(), one.end(), "--nnodes"), 0);
}

TEST(UpOptions, CpusAreSharedOut) {
  using Shares = std::vector<std::vector<int>>;
  EXPECT_EQ(share_cpus({4, 5, 6, 7, 8}, 2), (Shares{{4, 5}, {6, 7, 8}}));
  EXPECT_EQ(share_cpus({0, 1}, 5), (Shares{{0}, {1}, {0}, {1}, {0}}));
  EXPECT_EQ(share_cpus({3}, 1), (Shares{{3}}));
}

TEST(UpStatus, ReadsWhatIsThere) {
  NodeReport r;
  read_readyz({200, R"({"phase": "ready", "step": 17, "heartbeat_age_seconds": 0.25})"}, r);
  EXPECT_EQ(r.ready, true);
  EXPECT_EQ(r.phase, "ready");
  EXPECT_EQ(r.step, 17u);
  EXPECT_EQ(r.heartbeat_age, 0.25);
  NodeReport other;
  read_readyz({503, R"({"phase": 3, "step": -1, "heartbeat_age_seconds": "x"})"}, other);
  EXPECT_EQ(other.ready, false);
  EXPECT_FALSE(other.phase || other.step || other.heartbeat_age);
  NodeReport old;
  read_readyz({404, "no such path"}, old);
  EXPECT_FALSE(old.ready);
}

TEST(UpStatus, FindsAMetricWhateverItsLabels) {
  const std::string text =
      "# HELP a:b x\n# TYPE a:b gauge\na:b_total 3\na:b{m=\"x y\",n=\"z\"} 4.5\nx_a:b 7\nc 1e3\n";
  EXPECT_EQ(metric(text, "a:b"), 4.5);
  EXPECT_EQ(metric(text, "c"), 1000);
  EXPECT_EQ(metric(text, "a:b_total"), 3);
  EXPECT_FALSE(metric(text, "d"));
  EXPECT_FALSE(metric("a:b{never closed", "a:b"));
  EXPECT_FALSE(metric("", "a"));
}

TEST(UpStatus, TableLinesUp) {
  NodeRow a, b;
  a.host = "10.0.0.1";
  a.state = "ready";
  a.last_rank = 3;
  a.report = {true, "ready", 41, 0.26, 123.4};
  a.pid = 77;
  a.cpus = {0, 1, 2, 5};
  a.resident_bytes = 5 << 20;
  b.node = 1;
  b.first_rank = b.last_rank = 4;
  b.host = "10.0.0.20";
  b.state = "starting";
  b.last_line = "reading weights";
  const auto table = status_table({a, b}, 0);
  ASSERT_EQ(table.size(), 3u);
  EXPECT_EQ(table[0],
            "NODE  RANKS  HOST       STATE     PHASE  STEP   BEAT  PID  CPUS   MEMORY  TOK/S");
  EXPECT_EQ(table[1],
            "0     0-3    10.0.0.1   ready     ready    41  0.3 s  77   0-2,5   5 MiB  123.4");
  EXPECT_EQ(table[2],
            "1     4      10.0.0.20  starting  -         -      -  -                -      -  "
            "reading weights");
  for (const std::string& line : status_table({a, b}, 40)) EXPECT_LE(line.size(), 40u);
}

TEST(UpStatus, CpuListsAreShort) {
  EXPECT_EQ(cpu_list({}), "");
  EXPECT_EQ(cpu_list({3}), "3");
  EXPECT_EQ(cpu_list({9, 1, 2, 3, 7, 8}), "1-3,7-9");
}

TEST(UpGroupLog, TheCulpritIsTheNodeThatFailed) {
  EXPECT_EQ(named_culprit("x rank 8 (node 1, host b) failed at step 41: its connection broke"), 1);
  EXPECT_EQ(named_culprit("rank 8 (node 1, host b) is slow: 3.2 s behind"), -1);
  EXPECT_EQ(named_culprit("listening"), -1);
}

TEST(UpNetworkNames, ASlotKnowsItsOwn) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("capstan_up_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  for (const char* name : {"capstan-1-node0", "capstan-12-node0", "capstan-1-switch", "other"}) {
    std::ofstream(folder / name) << "";
  }
  EXPECT_EQ(namespaces_of_slot(folder, 1),
            (std::vector<std::string>{"capstan-1-node0", "capstan-1-switch"}));
  EXPECT_EQ(namespaces_of_slot(folder, 2), std::vector<std::string>{});
  EXPECT_EQ(namespaces_of_slot(folder / "none", 1), std::vector<std::string>{});
  std::filesystem::remove_all(folder);
}

TEST(UpNetworkNames, NetworksInUseAreLeftAlone) {
  const std::string head =
      "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
  // Default route, 10.0.0.0/8, 198.18.3.0/24
  const std::string routes = head +
                             "eth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n"
                             "eth0 0000000A 00000000 0001 0 0 0 000000FF 0 0 0\n"
                             "up3 000312C6 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
  EXPECT_FALSE(slot_is_routed(routes, 2));
  EXPECT_TRUE(slot_is_routed(routes, 3));
  // 198.16.0.0/14 holds all slots.
  const std::string wide = head + "eth1 000010C6 00000000 0001 0 0 0 0000FCFF 0 0 0\n";
  EXPECT_TRUE(slot_is_routed(wide, 0) && slot_is_routed(wide, 255));
  EXPECT_FALSE(slot_is_routed("", 0));
}

// One test, because tests may run side by side and every new network takes leftovers down.
TEST(UpNetworks, ComeAndGoAndLeftoversAreRemoved) {
  auto first = UpNetwork::create(2);
  if (!first.ok()) GTEST_SKIP() << first.error().message;
  auto second = UpNetwork::create(1);
  ASSERT_TRUE(second.ok()) << second.error().message;
  EXPECT_NE((*first)->place(0).name, (*second)->place(0).name);
  EXPECT_NE((*first)->place(0).address, (*first)->place(1).address);
  const auto paths = {(*first)->place(0).path, (*first)->place(1).path, (*second)->place(0).path};
  for (const std::string& path : paths) EXPECT_TRUE(std::filesystem::exists(path)) << path;
  const int fd = (*first)->stream_socket(1);
  EXPECT_GE(fd, 0);
  ::close(fd);
  first->reset();
  second->reset();
  for (const std::string& path : paths) EXPECT_FALSE(std::filesystem::exists(path)) << path;

  int names[2];
  ASSERT_EQ(::pipe(names), 0);
  const pid_t child = ::fork();
  if (child == 0) {  // dies without a destructor
    const auto network = UpNetwork::create(1);
    const std::string path = network.ok() ? (*network)->place(0).path : "";
    const bool sent = ::write(names[1], path.data(), path.size()) >= 0;
    ::kill(::getpid(), sent ? SIGKILL : SIGTERM);
  }
  ::close(names[1]);
  ::waitpid(child, nullptr, 0);
  char path[256] = {};
  ASSERT_GT(::read(names[0], path, sizeof(path) - 1), 0);
  ::close(names[0]);
  EXPECT_TRUE(std::filesystem::exists(path));
  const auto next = UpNetwork::create(1);
  ASSERT_TRUE(next.ok()) << next.error().message;
  const auto& removed = (*next)->removed();
  EXPECT_NE(std::find(removed.begin(), removed.end(), std::filesystem::path(path).filename()),
            removed.end());
}

/// Output and exit of a node that runs a shell.
std::pair<std::string, NodeExit> shell(NodeCommand command, const std::string& script) {
  command.program = "/bin/sh";
  command.arguments = {"-c", script};
  const auto process = start_node(command);
  EXPECT_TRUE(process.ok()) << (process.ok() ? "" : process.error().message);
  if (!process.ok()) return {};
  int status = 0;
  ::waitpid(process->pid, &status, 0);
  std::string text;
  char buffer[512];
  for (ssize_t n; (n = ::read(process->output, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
  }
  ::close(process->output);
  return {text, node_exit(status)};
}

TEST(UpProcess, HasItsEnvironmentAndCpus) {
  NodeCommand command;
  command.environment = {"CAPSTAN_UP_TEST=a=b"};
  EXPECT_EQ(shell(command, "echo $CAPSTAN_UP_TEST; echo err >&2").first, "a=b\nerr\n");
  EXPECT_EQ(shell(command, "exit 7").second.code, 7);
  const NodeExit killed = shell(command, "kill -9 $$").second;
  EXPECT_EQ(killed.code, 137);
  EXPECT_EQ(killed.describe(), "was killed by signal 9 (Killed)");
}

TEST(UpProcess, SaysWhatFailed) {
  NodeCommand command;
  command.program = "/nonexistent/program";
  const auto process = start_node(command);
  ASSERT_FALSE(process.ok());
  EXPECT_NE(process.error().message.find("run the program"), std::string::npos)
      << process.error().message;
  command.program = "/bin/true";
  command.network_namespace = "/nonexistent/namespace";
  EXPECT_FALSE(start_node(command).ok());
}

TEST(UpProcess, KnowsMemoryAndState) {
  EXPECT_GT(resident_bytes(::getpid()), 1u << 20);
  EXPECT_EQ(process_state(::getpid()), 'R');
  EXPECT_EQ(resident_bytes(0x7ffffff0), 0u);
  EXPECT_EQ(process_state(0x7ffffff0), '?');
}

}  // namespace
}  // namespace capstan::app
