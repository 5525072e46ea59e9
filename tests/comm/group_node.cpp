// One node of a group as a process of its own, for tests that kill and stop it.
//
//   group_node NODES NODE ADDRESS HEARTBEAT_TIMEOUT_MS
//
// Prints "joined" and how tensors go, "met" when it has heard of a step of every node, then a line
// "end: ..." and leaves with 0 after an orderly end, 3 after another. A byte on standard input:
// node 0 releases the group; "f": this node fails. CAPSTAN_GROUP_TOKEN, if set, is the secret.
#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <thread>

#include "comm/group.h"

using namespace capstan;
using namespace capstan::comm;

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (argc != 5) return 1;
  GroupConfig config;
  config.nodes = std::atoi(argv[1]);
  config.node = std::atoi(argv[2]);
  config.ranks_per_node = 2;
  config.dist_init_addr = argv[3];
  const char* const token = std::getenv("CAPSTAN_GROUP_TOKEN");
  config.token = token != nullptr ? token : "a secret";
  config.heartbeat_interval = std::chrono::milliseconds(50);
  config.heartbeat_timeout = std::chrono::milliseconds(std::atoi(argv[4]));
  auto group = Group::join(config, nullptr);
  if (!group.ok()) {
    std::printf("error: %s\n", group.error().message.c_str());
    return 2;
  }
  std::promise<GroupEnd> end;
  (*group)->on_end([&](const GroupEnd& e) { end.set_value(e); });
  std::printf("joined %s\n",
              (*group)->topology().shared_memory.empty() ? "by sockets" : "by shared memory");
  std::fflush(stdout);
  auto ended = end.get_future();
  uint64_t step = 0;
  bool met = false;
  while (ended.wait_for(std::chrono::milliseconds(5)) != std::future_status::ready) {
    (*group)->set_step(++step);
    const std::vector<NodeState> states = (*group)->states();
    const auto has_step = [](const NodeState& node) { return node.step > 0; };
    if (!met && std::all_of(states.begin(), states.end(), has_step)) {
      met = true;
      std::printf("met\n");
      std::fflush(stdout);
    }
    pollfd in{STDIN_FILENO, POLLIN, 0};
    char order = 0;
    if (poll(&in, 1, 0) != 1 || read(STDIN_FILENO, &order, 1) != 1) continue;
    if (order == 'f') {
      (*group)->fail(config.node * 2 + 1, internal_error("disk error"));
    } else {
      (*group)->release();
    }
  }
  const GroupEnd e = ended.get();
  std::printf("end: node %d rank %d %s: %s\n", e.node, e.rank, e.step > 0 ? "with step" : "no step",
              e.what.c_str());
  return e.orderly ? 0 : 3;
}
