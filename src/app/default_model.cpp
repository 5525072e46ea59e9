#include "app/default_model.h"

#include <algorithm>
#include <filesystem>
#include <vector>

namespace capstan::app {
namespace {

namespace fs = std::filesystem;

/// The .gguf file in `folder` that comes first by name; empty if there is none.
std::string first_gguf(const fs::path& folder) {
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".gguf") found.push_back(it->path().string());
  }
  std::sort(found.begin(), found.end());
  return found.empty() ? "" : found.front();
}

}  // namespace

Result<std::string> find_default_model(const Environment& environment) {
  std::vector<fs::path> folders;
  const auto chosen = environment("CAPSTAN_MODEL_DIR");
  if (chosen && !chosen->empty()) {
    folders = {fs::path(*chosen) / kDefaultModelName, fs::path(*chosen)};
  } else {
    const auto cache = environment("XDG_CACHE_HOME");
    const auto home = environment("HOME");
    fs::path base = cache && !cache->empty() ? fs::path(*cache)
                    : home && !home->empty() ? fs::path(*home) / ".cache"
                                             : fs::path(".cache");
    folders = {base / "capstan" / "models" / kDefaultModelName};
  }
  for (const fs::path& folder : folders) {
    if (std::string file = first_gguf(folder); !file.empty()) return file;
  }
  return not_found("no --model-path was given and the default model " +
                   std::string(kDefaultModelName) + " is not in " + folders[0].string() +
                   "; run `make model` to fetch it, or give --model-path DIRECTORY_OR_GGUF");
}

}  // namespace capstan::app
