#include "model/checkpoint.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <filesystem>
#include <set>

#include "model/config_json.h"
#include "model/digest.h"
#include "model/gguf_config.h"
#include "model/gguf_file.h"
#include "model/json.h"
#include "model/printable.h"
#include "model/safetensors.h"
#include "model/tensor_table.h"

namespace capstan::model {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

class FileCheckpoint final : public Checkpoint {
 public:
  const std::string& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  const GenerationDefaults& generation_defaults() const override { return defaults_; }
  const TensorView* find(const std::string& name) const override { return table_.find(name); }
  std::vector<std::string> tensor_names() const override { return table_.names(); }
  size_t total_bytes() const override { return table_.total_bytes(); }
  std::string digest() const override { return checkpoint_digest(config_text_, table_); }
  const text::GgufVocabulary* gguf_vocabulary() const override {
    return vocabulary_.model.empty() ? nullptr : &vocabulary_;
  }
  std::string general_name() const override { return name_; }
  void drop_pages(const TensorView& tensor) const override { table_.drop_pages(tensor); }
  void drop_all_pages() const override { table_.drop_all_pages(); }

  Status open_directory(const std::string& overrides);
  Status open_gguf(const std::string& overrides);

  std::string path_;
  ModelConfig config_;
  std::string config_text_;  // what config_ was made of: merged JSON
  GenerationDefaults defaults_;
  TensorTable table_;
  text::GgufVocabulary vocabulary_;
  std::string name_;

 private:
  Status open_weights();
  Result<std::set<std::string>> weight_files(json::object& weight_map) const;
};

std::string_view as_text(const platform::MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

Result<json::object> read_json(const fs::path& path, bool unique_keys = false) {
  CAPSTAN_ASSIGN(const platform::MappedFile file, platform::MappedFile::open(path.string()));
  return parse_json_object(as_text(file), path.string(), unique_keys);
}

/// Regular files of a directory with the extension, sorted by name.
Result<std::vector<fs::path>> files_with_extension(const fs::path& directory,
                                                   std::string_view extension) {
  std::vector<fs::path> found;
  std::error_code ec;
  for (fs::directory_iterator it(directory, ec), end; !ec && it != end; it.increment(ec)) {
    std::error_code ignored;
    if (it->path().extension() == extension && it->is_regular_file(ignored)) {
      found.push_back(it->path());
    }
  }
  if (ec)
    return invalid_argument("cannot list directory " + directory.string() + ": " + ec.message());
  std::sort(found.begin(), found.end());
  return found;
}

/// Which files hold the weights: those that the index names, else model.safetensors, else all.
Result<std::set<std::string>> FileCheckpoint::weight_files(json::object& weight_map) const {
  const fs::path directory(path_);
  std::set<std::string> files;
  const fs::path index = directory / "model.safetensors.index.json";
  std::error_code ec;
  if (fs::exists(index, ec)) {
    CAPSTAN_ASSIGN(json::object root, read_json(index, /*unique_keys=*/true));
    json::value* map = root.if_contains("weight_map");
    if (map == nullptr || !map->is_object()) {
      return data_loss(index.string() + ": no weight_map object");
    }
    weight_map = std::move(map->get_object());
    if (weight_map.empty()) return data_loss(index.string() + ": weight_map is empty");
    for (const auto& [tensor, file] : weight_map) {
      // Only plain names: an index must not reach outside its directory.
      const bool plain = file.is_string() && !file.get_string().empty() &&
                         fs::path(std::string(file.get_string())).filename() ==
                             fs::path(std::string(file.get_string())) &&
                         file.get_string() != ".." && file.get_string() != ".";
      if (!plain) {
        return data_loss(index.string() + ": tensor " + printable(tensor) + " lies in " +
                         json_excerpt(file) + ", which is not the name of a file beside the index");
      }
      files.insert(std::string(file.get_string()));
    }
    return files;
  }
  if (fs::exists(directory / "model.safetensors", ec))
    return std::set<std::string>{"model.safetensors"};
  CAPSTAN_ASSIGN(const std::vector<fs::path> all, files_with_extension(directory, ".safetensors"));
  for (const fs::path& file : all) files.insert(file.filename().string());
  return files;
}

Status FileCheckpoint::open_weights() {
  json::object weight_map;  // what the index places, less what has been found
  CAPSTAN_ASSIGN(const std::set<std::string> files, weight_files(weight_map));
  const bool indexed = !weight_map.empty();
  for (const std::string& name : files) {
    const std::string path = (fs::path(path_) / name).string();
    CAPSTAN_ASSIGN(platform::MappedFile mapped, platform::MappedFile::open(path));
    const platform::MappedFile& file = table_.keep(std::move(mapped));
    CAPSTAN_ASSIGN(std::vector<TensorView> tensors, parse_safetensors(file.bytes(), path));
    for (TensorView& tensor : tensors) {
      if (indexed) {
        const json::value* place = weight_map.if_contains(tensor.name);
        // Shards may repeat a tensor of another shard; the index says which one counts.
        if (place == nullptr || place->get_string() != json::string_view(name)) continue;
        weight_map.erase(tensor.name);
      }
      std::string hf_name = tensor.name;
      CAPSTAN_RETURN_IF_ERROR(table_.add(std::move(hf_name), std::move(tensor), path));
    }
    for (const auto& [tensor, place] : weight_map) {
      if (place.get_string() == json::string_view(name)) {
        return data_loss(path + ": tensor " + printable(tensor) +
                         " is missing, though model.safetensors.index.json places it here");
      }
    }
  }
  return {};
}

Status FileCheckpoint::open_directory(const std::string& overrides) {
  const fs::path directory(path_);
  const fs::path config_path = directory / "config.json";
  CAPSTAN_ASSIGN(json::object config, read_json(config_path));
  CAPSTAN_RETURN_IF_ERROR(merge_overrides(config, overrides));
  config_text_ = json::serialize(config);
  CAPSTAN_ASSIGN(config_, config_from_json(config, config_path.string()));
  if (const json::value* name = config.if_contains("_name_or_path"); name && name->is_string()) {
    name_ = std::string(name->get_string());
  }
  const fs::path generation_path = directory / "generation_config.json";
  std::error_code ec;
  if (fs::exists(generation_path, ec)) {
    CAPSTAN_ASSIGN(const json::object generation, read_json(generation_path));
    CAPSTAN_ASSIGN(defaults_,
                   generation_defaults_from_json(generation, generation_path.string(), config_));
  }
  CAPSTAN_RETURN_IF_ERROR(open_weights());
  config_.weight_dtype = table_.bulk_dtype(config_.weight_dtype);
  return {};
}

Status FileCheckpoint::open_gguf(const std::string& overrides) {
  CAPSTAN_ASSIGN(platform::MappedFile mapped, platform::MappedFile::open(path_));
  const platform::MappedFile& file = table_.keep(std::move(mapped));
  CAPSTAN_ASSIGN(const GgufFile gguf, GgufFile::parse(file.bytes(), path_));
  CAPSTAN_ASSIGN(json::object config, gguf_config_json(gguf, path_));
  CAPSTAN_RETURN_IF_ERROR(merge_overrides(config, overrides));
  config_text_ = json::serialize(config);
  CAPSTAN_ASSIGN(config_, config_from_json(config, path_));
  CAPSTAN_RETURN_IF_ERROR(apply_gguf_details(gguf, path_, config_));
  CAPSTAN_ASSIGN(defaults_, gguf_generation_defaults(gguf, path_));
  CAPSTAN_ASSIGN(vocabulary_, capstan::model::gguf_vocabulary(gguf, path_));
  CAPSTAN_ASSIGN(const std::optional<std::string_view> name, gguf.string("general.name"));
  name_ = std::string(name.value_or(""));
  for (const TensorView& tensor : gguf.tensors()) {
    CAPSTAN_ASSIGN(auto parts, hf_tensors(tensor, path_));
    for (auto& [hf_name, view] : parts) {
      CAPSTAN_RETURN_IF_ERROR(table_.add(std::move(hf_name), std::move(view), path_));
    }
  }
  // Newer files hold the key and value halves of kv_b_proj apart; some hold all three.
  config_.mla.split_kv_b = table_.find("model.layers.0.self_attn.k_b_proj.weight") != nullptr &&
                           table_.find("model.layers.0.self_attn.kv_b_proj.weight") == nullptr;
  config_.weight_dtype = table_.bulk_dtype(config_.weight_dtype);
  return {};
}

/// The .gguf file that `path` means, or an empty path for a Hugging Face directory.
Result<fs::path> find_gguf(const fs::path& path) {
  std::error_code ec;
  const fs::file_status status = fs::status(path, ec);
  if (!fs::exists(status)) {
    return not_found("model path " + path.string() +
                     " does not exist; give a directory with config.json and *.safetensors, or a "
                     ".gguf file");
  }
  if (!fs::is_directory(status)) {
    if (path.extension() == ".safetensors" || path.extension() == ".json") {
      return invalid_argument("model path " + path.string() +
                              " is one file of a checkpoint; give the directory that holds it");
    }
    return path;
  }
  CAPSTAN_ASSIGN(const std::vector<fs::path> weights, files_with_extension(path, ".safetensors"));
  CAPSTAN_ASSIGN(const std::vector<fs::path> ggufs, files_with_extension(path, ".gguf"));
  const bool has_config = fs::exists(path / "config.json", ec);
  if (has_config && (!weights.empty() || ggufs.empty())) return fs::path();
  if (ggufs.size() == 1) return ggufs[0];
  if (ggufs.empty()) {
    return not_found("directory " + path.string() +
                     (weights.empty() ? " holds neither config.json nor a .gguf file"
                                      : " holds *.safetensors but no config.json"));
  }
  std::string list;
  for (const fs::path& g : ggufs) list += (list.empty() ? "" : ", ") + g.filename().string();
  return invalid_argument("directory " + path.string() + " holds several .gguf files (" + list +
                          "); give the path of one of them");
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> Checkpoint::open(const std::string& path,
                                                     const std::string& overrides_json) {
  CAPSTAN_ASSIGN(const fs::path gguf, find_gguf(path));
  auto checkpoint = std::make_unique<FileCheckpoint>();
  checkpoint->path_ = gguf.empty() ? path : gguf.string();
  CAPSTAN_RETURN_IF_ERROR(gguf.empty() ? checkpoint->open_directory(overrides_json)
                                       : checkpoint->open_gguf(overrides_json));
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace capstan::model
