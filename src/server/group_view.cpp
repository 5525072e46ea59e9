#include "server/group_view.h"

#include <algorithm>
#include <cstdio>

namespace capstan::server {

const NodeView* GroupView::own() const {
  for (const NodeView& node : nodes) {
    if (node.node == own_node) return &node;
  }
  return nullptr;
}

double GroupView::oldest_heartbeat() const {
  double age = 0;
  for (const NodeView& node : nodes) age = std::max(age, node.heartbeat_age);
  return age;
}

std::string GroupView::unready() const {
  if (!end.empty()) return end;
  for (const NodeView& node : nodes) {
    const std::string name =
        "node " + std::to_string(node.node) + (node.host.empty() ? "" : " (" + node.host + ")");
    if (!node.joined) return name + " has not joined";
    if (node.phase != kPhaseReady && node.phase != kPhaseDraining) {
      return name + " is " + (node.phase.empty() ? "starting" : node.phase);
    }
    if (node.heartbeat_age > heartbeat_timeout / 3) {
      char age[32];
      std::snprintf(age, sizeof(age), "%.1f", node.heartbeat_age);
      return "no heartbeat of " + name + " for " + age + " s";
    }
  }
  return "";
}

}  // namespace capstan::server
