// Which network devices UCX may use.
#pragma once

#include <string>

#include "base/result.h"

namespace capstan::comm {

/// UCX's NET_DEVICES for tensor links through the network interface `interface` (empty: none was
/// chosen): that interface, and the RDMA devices that belong to it, or, if it has none, all that
/// the machine has, since an interface chosen for sockets says nothing of them. Empty: UCX chooses;
/// so also when UCX_NET_DEVICES is set, which goes before.
std::string ucx_devices(const std::string& interface);

/// Whether the kernel knows any RDMA device; without UCX.
bool machine_has_rdma();
/// Their names: "mlx5_0, mlx5_1"; empty: none.
std::string machine_rdma();

/// The RDMA devices that UCX may use here with this environment (UCX_TLS, UCX_NET_DEVICES):
/// "mlx5_0:1, mlx5_1:1"; empty: none. Errors as ucx_library().
Result<std::string> ucx_rdma_devices();

}  // namespace capstan::comm
