#include "app/up_network.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace capstan::app {
namespace {

namespace fs = std::filesystem;

constexpr int kSlots = 256;
constexpr const char* kLocks = "/run/capstan";
constexpr const char* kNamespaces = "/run/netns";

std::string prefix(int slot) { return "capstan-" + std::to_string(slot) + "-"; }
std::string host_link(int slot) { return "capstan" + std::to_string(slot); }
std::string lock_file(int slot) {
  return std::string(kLocks) + "/up-" + std::to_string(slot) + ".lock";
}
std::string address(int slot, int last) {
  return "198.18." + std::to_string(slot) + "." + std::to_string(last);
}

/// Runs `ip [-n ns] -batch -` with one command per line; what it said when it failed. Runs all
/// lines even if some fail when `force`.
Status ip(const std::string& network_namespace, const std::string& lines, bool force = false) {
  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0) return unavailable(std::strerror(errno));
  if (::pipe2(out, O_CLOEXEC) != 0) {
    ::close(in[0]);
    ::close(in[1]);
    return unavailable(std::strerror(errno));
  }
  std::vector<const char*> argv = {"ip"};
  if (!network_namespace.empty()) argv.insert(argv.end(), {"-n", network_namespace.c_str()});
  if (force) argv.push_back("-force");
  argv.insert(argv.end(), {"-batch", "-", nullptr});
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(in[0], STDIN_FILENO);
    ::dup2(out[1], STDOUT_FILENO);
    ::dup2(out[1], STDERR_FILENO);
    // Not searched for by PATH alone: a root shell without sbin is common.
    ::execvp("ip", const_cast<char**>(argv.data()));
    for (const char* path : {"/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"}) {
      ::execv(path, const_cast<char**>(argv.data()));
    }
    ::_exit(127);
  }
  ::close(in[0]);
  ::close(out[1]);
  std::string said;
  int status = -1;
  if (pid > 0) {
    // Shorter than a pipe's buffer, so it goes in at once; an `ip` that is not there leaves EPIPE.
    size_t at = 0;
    while (at < lines.size()) {
      const ssize_t n = ::write(in[1], lines.data() + at, lines.size() - at);
      if (n <= 0) break;
      at += static_cast<size_t>(n);
    }
  }
  ::close(in[1]);
  char buffer[512];
  for (ssize_t n; pid > 0 && (n = ::read(out[0], buffer, sizeof buffer)) > 0;) {
    said.append(buffer, static_cast<size_t>(n));
  }
  ::close(out[0]);
  if (pid < 0) return unavailable(std::string("fork: ") + std::strerror(errno));
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    return unavailable("the program 'ip' is missing; install the package iproute2");
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return unavailable("ip: " + said.substr(0, said.find('\n')));
}

/// The lock's descriptor, -1 when another process holds it.
Result<int> lock_slot(int slot) {
  const int fd = ::open(lock_file(slot).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return unavailable(lock_file(slot) + ": " + std::strerror(errno));
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  ::close(fd);
  return -1;
}

void remove_slot(int slot, const std::vector<std::string>& names) {
  // The machine's link first: a namespace goes later than its name, and its links with it.
  if (fs::exists("/sys/class/net/" + host_link(slot))) {
    (void)ip("", "link del " + host_link(slot) + "\n", true).ok();
  }
  std::string lines;
  for (const std::string& name : names) lines += "netns del " + name + "\n";
  if (!lines.empty()) (void)ip("", lines, true).ok();
}

/// Takes down what slots hold that nobody holds; the names.
std::vector<std::string> sweep() {
  std::vector<std::string> removed;
  for (int slot = 0; slot < kSlots; ++slot) {
    if (!fs::exists(lock_file(slot))) continue;
    const auto lock = lock_slot(slot);
    if (!lock.ok() || *lock < 0) continue;
    const auto names = namespaces_of_slot(kNamespaces, slot);
    remove_slot(slot, names);
    removed.insert(removed.end(), names.begin(), names.end());
    ::close(*lock);
  }
  return removed;
}

std::string read_text(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

std::vector<std::string> namespaces_of_slot(const std::string& folder, int slot) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(prefix(slot))) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool slot_is_routed(const std::string& routes, int slot) {
  // Columns: interface, destination, gateway, flags, ..., mask (the 8th); little-endian hex.
  std::istringstream lines(routes);
  std::string line;
  std::getline(lines, line);
  const uint32_t wanted = 198u | 18u << 8 | static_cast<uint32_t>(slot) << 16;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::vector<std::string> word{std::istream_iterator<std::string>(words), {}};
    if (word.size() < 8) continue;
    const auto hex = [](const std::string& text) {
      uint32_t value = 0;
      std::from_chars(text.data(), text.data() + text.size(), value, 16);
      return value;
    };
    const uint32_t destination = hex(word[1]), mask = hex(word[7]) & 0x00ffffffu;
    if (mask != 0 && (wanted & mask) == (destination & mask)) return true;
  }
  return false;
}

Result<std::unique_ptr<UpNetwork>> UpNetwork::create(int nodes) {
  if (::geteuid() != 0) return unavailable("network namespaces need root");
  std::error_code error;
  fs::create_directories(kLocks, error);
  if (error) return unavailable(std::string(kLocks) + ": " + error.message());
  std::unique_ptr<UpNetwork> network(new UpNetwork);
  network->removed_ = sweep();
  const std::string routes = read_text("/proc/net/route");
  for (int slot = 0; slot < kSlots; ++slot) {
    if (slot_is_routed(routes, slot)) continue;
    CAPSTAN_ASSIGN(const int lock, lock_slot(slot));
    if (lock < 0) continue;
    network->lock_ = lock;
    CAPSTAN_RETURN_IF_ERROR(network->build(nodes, slot));
    return network;
  }
  return unavailable("all networks 198.18.0.0/24 to 198.18.255.0/24 are in use");
}

Status UpNetwork::build(int nodes, int slot) {
  bridge_namespace_ = prefix(slot) + "switch";
  host_interface_ = host_link(slot);
  host_address_ = address(slot, 1);
  for (int node = 0; node < nodes; ++node) {
    UpPlace place;
    place.name = prefix(slot) + "node" + std::to_string(node);
    place.path = std::string(kNamespaces) + "/" + place.name;
    place.address = address(slot, node + 2);
    place.interface = "eth0";
    place.link = "node" + std::to_string(node);
    places_.push_back(place);
  }
  std::string lines = "netns add " + bridge_namespace_ + "\n";
  for (const UpPlace& place : places_) lines += "netns add " + place.name + "\n";
  lines += "link add " + host_interface_ + " type veth peer name host netns " + bridge_namespace_ +
           "\naddr add " + host_address_ + "/24 dev " + host_interface_ + "\nlink set " +
           host_interface_ + " up\n";
  CAPSTAN_RETURN_IF_ERROR(ip("", lines));
  lines = "link add " + bridge_ + " type bridge\nlink set " + bridge_ +
          " up\nlink set lo up\nlink set host master " + bridge_ + " up\n";
  for (const UpPlace& place : places_) {
    lines += "link add " + place.link + " type veth peer name " + place.interface + " netns " +
             place.name + "\nlink set " + place.link + " master " + bridge_ + " up\n";
  }
  CAPSTAN_RETURN_IF_ERROR(ip(bridge_namespace_, lines));
  for (const UpPlace& place : places_) {
    CAPSTAN_RETURN_IF_ERROR(ip(place.name, "link set lo up\naddr add " + place.address +
                                               "/24 dev " + place.interface + "\nlink set " +
                                               place.interface + " up\nroute add default via " +
                                               host_address_ + "\n"));
  }
  return {};
}

UpNetwork::~UpNetwork() {
  if (lock_ < 0) return;
  std::vector<std::string> names = {bridge_namespace_};
  for (const UpPlace& place : places_) names.push_back(place.name);
  std::erase_if(names, [](const std::string& name) {
    return name.empty() || !fs::exists(std::string(kNamespaces) + "/" + name);
  });
  const int slot = std::stoi(host_interface_.empty() ? "-1" : host_interface_.substr(7));
  if (slot >= 0) remove_slot(slot, names);
  ::close(lock_);
}

int UpNetwork::stream_socket(int node) const {
  const int own = ::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  const int other = ::open(place(node).path.c_str(), O_RDONLY | O_CLOEXEC);
  int made = -1;
  if (own >= 0 && other >= 0 && ::setns(other, CLONE_NEWNET) == 0) {
    made = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (::setns(own, CLONE_NEWNET) != 0) {  // nothing would go right from here on
      ::close(made);
      made = -1;
    }
  }
  if (other >= 0) ::close(other);
  if (own >= 0) ::close(own);
  return made;
}

}  // namespace capstan::app
