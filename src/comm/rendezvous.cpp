#include "comm/rendezvous.h"

#include <algorithm>

namespace capstan::comm {
namespace {

const std::string* find(const Facts& facts, const std::string& name) {
  const auto at = std::find_if(facts.begin(), facts.end(),
                               [&](const auto& fact) { return fact.first == name; });
  return at == facts.end() ? nullptr : &at->second;
}

std::string_view transport_name(Transport transport) {
  switch (transport) {
    case Transport::kAuto:
      return "auto";
    case Transport::kSharedMemory:
      return "shared memory";
    case Transport::kTcp:
      return "tcp";
    case Transport::kUcx:
      return "ucx";
  }
  return "?";
}

}  // namespace

Facts all_facts(const GroupConfig& config) {
  Facts facts = {{"nnodes", std::to_string(config.nodes)},
                 {"ranks per node", std::to_string(config.ranks_per_node)},
                 {"transport", std::string(transport_name(config.transport))}};
  facts.insert(facts.end(), config.facts.begin(), config.facts.end());
  return facts;
}

std::string describe_difference(const Facts& theirs, const Facts& ours, const std::string& here) {
  const auto value = [](const std::string* text) { return text == nullptr ? "absent" : *text; };
  std::string out;
  const auto add = [&](const std::string& name, const std::string* their, const std::string* our) {
    out += (out.empty() ? "" : "; ") + name + " is " + value(their) + ", " + here + " is " +
           value(our);
  };
  for (const auto& [name, our] : ours) {
    const std::string* their = find(theirs, name);
    if (their == nullptr || *their != our) add(name, their, &our);
  }
  for (const auto& [name, their] : theirs) {
    if (find(ours, name) == nullptr) add(name, &their, nullptr);
  }
  return out;
}

std::string describe_node(int node, const std::string& host) {
  return "node " + std::to_string(node) + (host.empty() ? "" : " (host " + host + ")");
}

}  // namespace capstan::comm
