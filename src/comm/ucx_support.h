// Whether a node can use UCX, and whether a group does. Also there where UCX was not built in.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "comm/group.h"

namespace capstan::comm {

/// What a node tells the others.
struct UcxSupport {
  std::string version;  // "1.13.1"
  std::string lack;     // why it cannot use UCX, with the remedy; empty: it can
  std::string rdma;     // its RDMA devices; empty: none
};

/// Whether this program was built with UCX.
bool ucx_built_in();

/// Of this process. `asked`: kUcx loads UCX; kAuto only where the machine has RDMA at all, since
/// its libraries do not leave a process as it was (ucx_library.h).
UcxSupport ucx_support(Transport asked);

std::string encode(const UcxSupport& support);
bool decode(std::string_view body, UcxSupport& support);

/// Whether the group uses UCX. With kUcx an error if it cannot, the same on all nodes; with kAuto
/// only where all have RDMA. `why`: for the log, when the answer is no. `names`: "node 1 (host b)".
Result<bool> choose_ucx(Transport asked, std::span<const UcxSupport> nodes,
                        std::span<const std::string> names, std::string* why);

/// Whether UCX's transport `name` is one of RDMA.
bool ucx_is_rdma(std::string_view name);
/// Whether `name`, a transport or device, is allowed by a list in UCX's way: empty or "all" allow
/// everything, "^a,b" all but those; "ib", "rc", "ud" and "dc" stand for families of transports.
bool ucx_list_allows(std::string_view list, std::string_view name);

}  // namespace capstan::comm
