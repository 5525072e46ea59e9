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
  std::string version;  // "1.13.1"; empty: not loaded
  std::string lack;     // why it cannot use UCX, with the remedy; empty: nothing known
  std::string rdma;     // its RDMA devices; empty: none
};

/// Whether this program was built with UCX.
bool ucx_built_in();

/// Of this process. `asked`: kUcx loads UCX and names the devices that it may use; kAuto leaves it
/// alone, since its libraries do not leave a process as it was (ucx_library.h), and names those
/// that the kernel knows.
UcxSupport ucx_support(Transport asked);

std::string encode(const UcxSupport& support);
bool decode(std::string_view body, UcxSupport& support);

/// For a group that was asked to use UCX: an error, the same on all nodes, if one cannot. `names`:
/// "node 1 (host b)".
Status check_ucx(std::span<const UcxSupport> nodes, std::span<const std::string> names);

/// For a group whose transport is kAuto, which never is UCX: UCX over RDMA has not been run on such
/// hardware. Where all nodes have RDMA devices and UCX was built in: a line for the log that says
/// how to use them. Else empty.
std::string ucx_hint(std::span<const UcxSupport> nodes);

/// Whether UCX's transport `name` is one of RDMA.
bool ucx_is_rdma(std::string_view name);
/// Whether `name`, a transport or device, is allowed by a list in UCX's way: empty or "all" allow
/// everything, "^a,b" all but those; "ib", "rc", "ud" and "dc" stand for families of transports.
bool ucx_list_allows(std::string_view list, std::string_view name);

}  // namespace capstan::comm
