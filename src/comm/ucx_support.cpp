#include "comm/ucx_support.h"

#include "comm/control_message.h"
#ifdef CAPSTAN_UCX_BUILT
#include "comm/ucx_devices.h"
#include "comm/ucx_library.h"
#endif

namespace capstan::comm {
namespace {

constexpr std::string_view kRemedy = ", or use --comm-transport tcp on all nodes";

/// Whether an item of a list means the transport or device `name`.
bool covers(std::string_view item, std::string_view name) {
  if (item == "all" || item == name) return true;
  if (item == "ib") return ucx_is_rdma(name);
  // rc: rc_verbs and rc_mlx5; rc_v and rc_x: one of them.
  for (const std::string_view family : {"rc", "ud", "dc"}) {
    if (!name.starts_with(std::string(family) + "_") || !item.starts_with(family)) continue;
    const std::string_view rest = item.substr(family.size());
    if (rest.empty() || (rest == "_v" && name.ends_with("_verbs")) ||
        (rest == "_x" && name.ends_with("_mlx5"))) {
      return true;
    }
  }
  return false;
}

}  // namespace

bool ucx_built_in() {
#ifdef CAPSTAN_UCX_BUILT
  return true;
#else
  return false;
#endif
}

UcxSupport ucx_support([[maybe_unused]] Transport asked) {
  UcxSupport support;
#ifdef CAPSTAN_UCX_BUILT
  if (asked == Transport::kAuto) {
    support.rdma = machine_rdma();
    return support;
  }
  const auto library = ucx_library();
  if (!library.ok()) {
    support.lack = library.error().message;
    return support;
  }
  support.version = (*library)->version;
  if (const auto devices = ucx_rdma_devices(); devices.ok()) support.rdma = *devices;
#else
  support.lack = "it was built without UCX; install Debian's package libucx-dev and build it again";
#endif
  return support;
}

std::string encode(const UcxSupport& support) {
  return Writer().text(support.version).text(support.lack).text(support.rdma).take();
}

bool decode(std::string_view body, UcxSupport& support) {
  Reader in(body);
  support.version = in.text();
  support.lack = in.text();
  support.rdma = in.text();
  return in.done();
}

Status check_ucx(std::span<const UcxSupport> nodes, std::span<const std::string> names) {
  const auto refused = [](const std::string& why) {
    return invalid_argument("UCX was asked for, but " + why + std::string(kRemedy));
  };
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!nodes[i].lack.empty()) return refused(names[i] + " cannot use UCX: " + nodes[i].lack);
    if (nodes[i].version != nodes[0].version) {
      return refused(names[i] + " has UCX " + nodes[i].version + ", " + names[0] + " has " +
                     nodes[0].version + "; use one image for all nodes");
    }
  }
  return {};
}

std::string ucx_hint(std::span<const UcxSupport> nodes) {
  for (const UcxSupport& node : nodes) {
    if (!node.lack.empty() || node.rdma.empty()) return "";
  }
  return "tensors go through TCP; all nodes have RDMA devices (" + nodes[0].rdma +
         " here): --comm-transport ucx, on all nodes, is available to use them";
}

bool ucx_is_rdma(std::string_view name) {
  return name.starts_with("rc_") || name.starts_with("ud_") || name.starts_with("dc_");
}

bool ucx_list_allows(std::string_view list, std::string_view name) {
  if (list.empty()) return true;
  const bool excludes = list.front() == '^';
  if (excludes) list.remove_prefix(1);
  bool named = false;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    named = named || covers(list.substr(0, comma), name);
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return named != excludes;
}

}  // namespace capstan::comm
