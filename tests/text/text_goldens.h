// tests/testdata/text: made by tools/make_text_goldens.py from the Hugging Face packages.
#pragma once

#include <boost/json.hpp>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace capstan::text {

inline std::string testdata(const std::string& name) {
  return std::string(CAPSTAN_TESTDATA) + "/text/" + name;
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("missing " + path + "; run tools/make_text_goldens.py");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline boost::json::value read_json(const std::string& name) {
  return boost::json::parse(read_text(testdata(name)));
}

inline std::vector<int32_t> to_ids(const boost::json::value& list) {
  return boost::json::value_to<std::vector<int32_t>>(list);
}

inline std::vector<std::string> read_corpus() {
  return boost::json::value_to<std::vector<std::string>>(read_json("corpus.json"));
}

}  // namespace capstan::text
