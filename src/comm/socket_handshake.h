// The first words of the nodes of a group over their links, before any frame.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "comm/communicator.h"

namespace capstan::comm {

/// kInvalidArgument unless there is one open link to each node of `topology` but this one.
Status check_links(const Topology& topology, const std::vector<NodeLink>& links);

/// Tells every other node what this one knows of the group and compares; an error names the values
/// that differ. Gives the number of nodes, this one included, that run on this machine.
Result<int> greet(const Topology& topology, const std::vector<NodeLink>& links);

/// Short texts, over a link that carries nothing else meanwhile.
Status send_text(const NodeLink& link, const std::string& text);
Result<std::string> receive_text(const NodeLink& link);

/// "node 1 (host b)"
std::string node_name(const NodeLink& link);

}  // namespace capstan::comm
