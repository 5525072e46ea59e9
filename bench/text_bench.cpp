// Tokenizer speed on one and on several threads: MB/s of text, English and source code.
// The vocabulary is SmolLM2's if its GGUF file is in the usual place ($CAPSTAN_BENCH_GGUF names
// another).
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "model/checkpoint.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace {

using capstan::text::Tokenizer;

std::string gguf_path() {
  if (const char* path = std::getenv("CAPSTAN_BENCH_GGUF")) return path;
  const char* home = std::getenv("HOME");
  const std::filesystem::path models = std::filesystem::path(home != nullptr ? home : "") /
                                       ".cache/capstan/models/SmolLM2-135M-Instruct";
  std::error_code ec;
  for (const auto& entry : std::filesystem::directory_iterator(models, ec)) {
    if (entry.path().extension() == ".gguf") return entry.path().string();
  }
  return {};
}

std::shared_ptr<const Tokenizer> tokenizer() {
  static const std::shared_ptr<const Tokenizer> loaded = []() -> std::shared_ptr<const Tokenizer> {
    auto checkpoint = capstan::model::Checkpoint::open(gguf_path());
    if (!checkpoint.ok() || (*checkpoint)->gguf_vocabulary() == nullptr) return nullptr;
    auto made = Tokenizer::from_gguf(*(*checkpoint)->gguf_vocabulary());
    return made.ok() ? *made : nullptr;
  }();
  return loaded;
}

/// This file and its neighbours: prose in comments, and code.
const std::string& text() {
  static const std::string joined = [] {
    std::string all;
    const auto root = std::filesystem::path(__FILE__).parent_path().parent_path();
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / "src")) {
      const auto extension = entry.path().extension();
      if (extension != ".h" && extension != ".cpp" && extension != ".md") continue;
      std::ifstream file(entry.path(), std::ios::binary);
      all.append(std::istreambuf_iterator<char>(file), {});
    }
    return all.substr(0, 1 << 20);
  }();
  return joined;
}

/// `size` bytes of the text per call: a chat turn, a document, a book.
void encode(benchmark::State& state) {
  const auto tok = tokenizer();
  if (tok == nullptr) {
    state.SkipWithError("no GGUF file");
    return;
  }
  const auto size = static_cast<size_t>(state.range(0));
  size_t at = 0;
  int64_t tokens = 0;
  for (auto _ : state) {
    const auto ids = tok->encode(std::string_view(text()).substr(at, size), false);
    if (!ids.ok()) continue;  // a cut inside a character
    tokens += static_cast<int64_t>(ids->size());
    at = (at + size) % (text().size() - size);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * state.range(0));
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsRate);
}
BENCHMARK(encode)->Arg(1 << 10)->Arg(1 << 16)->ThreadRange(1, 2)->UseRealTime();

void detokenize(benchmark::State& state) {
  const auto tok = tokenizer();
  if (tok == nullptr) {
    state.SkipWithError("no GGUF file");
    return;
  }
  const auto ids = tok->encode(std::string_view(text()).substr(0, 4096), false);
  if (!ids.ok()) return;
  for (auto _ : state) {
    capstan::text::Detokenizer stream(tok, true);
    for (const int32_t id : *ids) benchmark::DoNotOptimize(stream.push(id));
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * ids->size()));
}
BENCHMARK(detokenize);

}  // namespace

BENCHMARK_MAIN();
