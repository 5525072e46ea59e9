#include "comm/ucx_devices.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <system_error>
#include <vector>

#include "comm/ucx_library.h"
#include "comm/ucx_support.h"

namespace capstan::comm {
namespace {

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end;
       at.increment(error)) {
    names.push_back(at->path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

template <class Names>
std::string joined(const Names& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const std::filesystem::path kRdma = "/sys/class/infiniband";

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Adds the names of the component's devices that can do RDMA.
void collect(const UcxLibrary& ucx, uct_component_h component, const std::string& transports,
             const std::string& devices, std::set<std::string>& found) {
  uct_component_attr_t attr{};
  attr.field_mask = UCT_COMPONENT_ATTR_FIELD_MD_RESOURCE_COUNT;
  if (ucx.uct_component_query(component, &attr) != UCS_OK || attr.md_resource_count == 0) return;
  std::vector<uct_md_resource_desc_t> domains(attr.md_resource_count);
  attr.field_mask = UCT_COMPONENT_ATTR_FIELD_MD_RESOURCES;
  attr.md_resources = domains.data();
  if (ucx.uct_component_query(component, &attr) != UCS_OK) return;
  for (const uct_md_resource_desc_t& domain : domains) {
    uct_md_config_t* config = nullptr;
    if (ucx.uct_md_config_read(component, nullptr, nullptr, &config) != UCS_OK) continue;
    uct_md_h md = nullptr;
    const ucs_status_t opened = ucx.uct_md_open(component, domain.md_name, config, &md);
    ucx.uct_config_release(config);
    if (opened != UCS_OK) continue;
    uct_tl_resource_desc_t* resources = nullptr;
    unsigned count = 0;
    if (ucx.uct_md_query_tl_resources(md, &resources, &count) == UCS_OK) {
      for (unsigned i = 0; i < count; ++i) {
        const std::string transport = resources[i].tl_name;
        const std::string device = resources[i].dev_name;
        if (ucx_is_rdma(transport) && ucx_list_allows(transports, transport) &&
            ucx_list_allows(devices, device)) {
          found.insert(device);
        }
      }
      ucx.uct_release_tl_resource_list(resources);
    }
    ucx.uct_md_close(md);
  }
}

}  // namespace

std::string ucx_devices(const std::string& interface) {
  if (interface.empty() || !environment("UCX_NET_DEVICES").empty()) return "";
  std::string list = interface;
  std::vector<std::string> devices = names_in("/sys/class/net/" + interface + "/device/infiniband");
  if (devices.empty()) devices = names_in(kRdma);
  for (const std::string& device : devices) {
    for (const std::string& port : names_in(kRdma / device / "ports")) {
      list += "," + device + ":" + port;
    }
  }
  return list;
}

bool machine_has_rdma() { return !names_in(kRdma).empty(); }

std::string machine_rdma() { return joined(names_in(kRdma)); }

Result<std::string> ucx_rdma_devices() {
  CAPSTAN_ASSIGN(const UcxLibrary* const ucx, ucx_library());
  uct_component_h* components = nullptr;
  unsigned count = 0;
  if (ucx->uct_query_components(&components, &count) != UCS_OK) return std::string();
  std::set<std::string> found;
  for (unsigned i = 0; i < count; ++i) {
    collect(*ucx, components[i], environment("UCX_TLS"), environment("UCX_NET_DEVICES"), found);
  }
  ucx->uct_release_component_list(components);
  return joined(found);
}

}  // namespace capstan::comm
