#include "comm/group.h"

#include <exception>

#include "comm/address.h"
#include "comm/group_control.h"

namespace capstan::comm {
namespace {

Status check(const GroupConfig& config) {
  if (config.nodes < 1 || config.ranks_per_node < 1) {
    return invalid_argument("a group of " + std::to_string(config.nodes) + " nodes with " +
                            std::to_string(config.ranks_per_node) + " ranks each cannot be");
  }
  if (config.node < 0 || config.node >= config.nodes) {
    return invalid_argument("--node-rank " + std::to_string(config.node) + " is outside 0 to " +
                                std::to_string(config.nodes - 1) + " (--nnodes " +
                                std::to_string(config.nodes) + ")",
                            "node-rank");
  }
  if (config.heartbeat_interval.count() < 1 ||
      config.heartbeat_timeout < 4 * config.heartbeat_interval) {
    return invalid_argument("a heartbeat timeout of " + seconds_text(config.heartbeat_timeout) +
                            " is less than four intervals of " +
                            seconds_text(config.heartbeat_interval));
  }
  if (config.nodes == 1) return {};
  CAPSTAN_RETURN_IF_ERROR(parse_host_port(config.dist_init_addr).status());
  if (config.interface.empty()) return {};
  return select_interface(config.interface, list_interfaces(), AF_INET).status();
}

Result<std::unique_ptr<GroupControl>> form(const GroupConfig& config, const GroupTiming& timing,
                                           const Stop& stop) {
  CAPSTAN_RETURN_IF_ERROR(check(config));
  Formed formed;
  if (config.nodes == 1) {
    formed.hosts = {host_name()};
    formed.links.resize(1);
  } else {
    CAPSTAN_ASSIGN(formed, config.node == 0 ? form_as_leader(config, timing, stop)
                                            : form_as_member(config, timing, stop));
  }
  Formed facts;
  facts.session = formed.session;
  facts.hosts = formed.hosts;
  facts.local = formed.local;
  facts.leader = formed.leader;
  auto group = std::make_unique<GroupControl>(config, timing, std::move(formed));
  group->start();
  if (config.nodes == 1) return group;

  const Stop over = [&] { return stop() || group->ended(nullptr); };
  const Exchange exchange = [&](const std::string& name, std::string mine) {
    return group->exchange_until(name, std::move(mine), over);
  };
  Result<Links> links = open_links(config, timing, facts, exchange, over);
  if (!links.ok()) {
    if (stop()) return Error{ErrorCode::kAborted, "cancelled while joining the group"};
    if (GroupEnd end; group->ended(&end)) return unavailable(end.describe());
    group->fail(config.node * config.ranks_per_node,
                Error{ErrorCode::kInternal, links.error().message});
    return links.error();
  }
  group->set_links(std::move(links).value());
  return group;
}

}  // namespace

std::string GroupEnd::describe() const {
  if (orderly) return "the group was released by node 0 after step " + std::to_string(step);
  return "rank " + std::to_string(rank) + " (node " + std::to_string(node) + ", host " + host +
         ") failed at step " + std::to_string(step) + ": " + what;
}

Result<std::unique_ptr<GroupControl>> join_group(const GroupConfig& config,
                                                 const GroupTiming& timing, const Stop& stop) {
  try {
    return form(
        config, timing, stop ? stop : [] { return false; });
  } catch (const std::exception& e) {
    return internal_error(std::string("joining the group failed: ") + e.what());
  }
}

Result<std::unique_ptr<Group>> Group::join(const GroupConfig& config,
                                           const std::function<bool()>& cancelled) {
  CAPSTAN_ASSIGN(std::unique_ptr<GroupControl> group, join_group(config, GroupTiming{}, cancelled));
  return std::unique_ptr<Group>(std::move(group));
}

}  // namespace capstan::comm
