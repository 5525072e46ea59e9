#include "text/tokenizer.h"

#include <unordered_map>

#include "text/byte_map.h"
#include "text/hf_tokenizer.h"
#include "text/rust_call.h"
#include "text/utf8.h"

namespace capstan::text {
namespace {

// Flags of CapstanTokenizerTokens.
constexpr uint8_t kPresent = 1;
constexpr uint8_t kSpecial = 4;

struct FreeTokenizer {
  void operator()(CapstanTokenizer* tokenizer) const {
    RustScope scope;
    capstan_tokenizer_free(tokenizer);
  }
};
using Handle = std::unique_ptr<CapstanTokenizer, FreeTokenizer>;

Result<Handle> create(std::string_view json, const CapstanTokenizerPostOptions& options,
                      std::string_view origin) {
  RustScope scope;
  CapstanTokenizer* raw = nullptr;
  RustBytes message;
  const int32_t status = capstan_tokenizer_create(rust_slice(json), &options, &raw, message.out());
  if (status != kCapstanTextOk) return rust_error(status, origin, message);
  return Handle(raw);
}

class HfTokenizer final : public Tokenizer {
 public:
  HfTokenizer(Handle handle, TokenizerSettings settings)
      : handle_(std::move(handle)), settings_(std::move(settings)) {}

  /// Copies all token strings out of the crate, so that decoding never enters it.
  Status load_tokens(std::string_view origin) {
    CapstanTokenizerTokens raw{};
    RustBytes message;
    int32_t status = 0;
    {
      RustScope scope;
      status = capstan_tokenizer_tokens(handle_.get(), &raw, message.out());
    }
    if (status != kCapstanTextOk) return rust_error(status, origin, message);
    const RustBytes text(raw.text), flags(raw.flags);
    const RustIds ends(raw.ends);
    const size_t size = ends.size();
    flags_.assign(flags.view().begin(), flags.view().end());
    ends_.reserve(size);
    bytes_.reserve(text.view().size());
    ids_.reserve(size);
    size_t begin = 0;
    for (size_t id = 0; id < size; ++id) {
      const std::string_view token = text.view().substr(begin, ends.data()[id] - begin);
      begin = ends.data()[id];
      if (flags_[id] & kPresent) {
        ids_.emplace(token, static_cast<int32_t>(id));
        bytes_ += bytes_of_token(token);
      }
      ends_.push_back(static_cast<uint32_t>(bytes_.size()));
    }
    bos_id_ = id_of(settings_.bos_token).value_or(-1);
    eos_id_ = id_of(settings_.eos_token).value_or(-1);
    return {};
  }

  Result<std::vector<int32_t>> encode(std::string_view utf8,
                                      bool add_special_tokens) const override {
    RustIds ids;
    RustBytes message;
    int32_t status = 0;
    {
      RustScope scope;
      status = capstan_tokenizer_encode(handle_.get(), rust_slice(utf8), add_special_tokens,
                                        ids.out(), message.out());
    }
    if (status != kCapstanTextOk) return rust_error(status, {}, message);
    return std::vector<int32_t>(ids.data(), ids.data() + ids.size());
  }

  Result<std::string> decode(std::span<const int32_t> ids,
                             bool skip_special_tokens) const override {
    std::string text;
    Utf8Stream stream;
    for (const int32_t id : ids) {
      if (skip_special_tokens && is_special(id)) continue;
      stream.push(token_bytes(id), text);
    }
    stream.finish(text);
    return text;
  }

  std::string_view token_bytes(int32_t id) const override {
    if (id < 0 || static_cast<size_t>(id) >= ends_.size()) return {};
    const size_t begin = id == 0 ? 0 : ends_[static_cast<size_t>(id) - 1];
    return std::string_view(bytes_).substr(begin, ends_[static_cast<size_t>(id)] - begin);
  }

  bool is_special(int32_t id) const override {
    return id >= 0 && static_cast<size_t>(id) < flags_.size() &&
           (flags_[static_cast<size_t>(id)] & kSpecial) != 0;
  }

  std::optional<int32_t> id_of(std::string_view token) const override {
    const auto found = ids_.find(std::string(token));
    if (found == ids_.end()) return std::nullopt;
    return found->second;
  }

  int32_t vocab_size() const override { return static_cast<int32_t>(ends_.size()); }
  int32_t bos_id() const override { return bos_id_; }
  int32_t eos_id() const override { return eos_id_; }
  const std::string& bos_token() const override { return settings_.bos_token; }
  const std::string& eos_token() const override { return settings_.eos_token; }
  const std::string& chat_template() const override { return settings_.chat_template; }
  const std::string& tool_chat_template() const override {
    return settings_.tool_chat_template.empty() ? settings_.chat_template
                                                : settings_.tool_chat_template;
  }

 private:
  Handle handle_;
  TokenizerSettings settings_;
  int32_t bos_id_ = -1, eos_id_ = -1;
  std::string bytes_;           // raw bytes of all tokens, by id
  std::vector<uint32_t> ends_;  // where those of each id end
  std::vector<uint8_t> flags_;
  std::unordered_map<std::string, int32_t> ids_;
};

}  // namespace

Result<std::shared_ptr<const Tokenizer>> tokenizer_from_json(std::string_view json,
                                                             TokenizerSettings settings,
                                                             std::string_view origin) {
  CapstanTokenizerPostOptions options{};
  options.replace = settings.replace_post_processor ? 1 : 0;
  if (settings.add_bos) options.bos = rust_slice(settings.bos_token);
  if (settings.add_eos) options.eos = rust_slice(settings.eos_token);
  CAPSTAN_ASSIGN(Handle handle, create(json, options, origin));
  auto tokenizer = std::make_shared<HfTokenizer>(std::move(handle), std::move(settings));
  CAPSTAN_RETURN_IF_ERROR(tokenizer->load_tokens(origin));
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

Result<std::string> canonical_tokenizer_json(std::string_view json) {
  CAPSTAN_ASSIGN(Handle handle, create(json, {}, "tokenizer.json"));
  RustScope scope;
  RustBytes out, message;
  const int32_t status = capstan_tokenizer_to_json(handle.get(), out.out(), message.out());
  if (status != kCapstanTextOk) return rust_error(status, "tokenizer.json", message);
  return std::string(out.view());
}

}  // namespace capstan::text
