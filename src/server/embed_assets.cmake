# cmake "-DFILES=a.html|b.js" -DOUTPUT=x.cpp -P embed_assets.cmake
# Writes a C++ source with the files as byte arrays, each served under "/" and its name; index.html also
# answers "/".
string(REPLACE "|" ";" files "${FILES}")
list(SORT files)
set(arrays "")
set(table "")
set(index 0)
foreach(path ${files})
  get_filename_component(file ${path} NAME)
  file(READ ${path} hex HEX)
  file(SHA256 ${path} sha)
  string(SUBSTRING ${sha} 0 16 sha)
  string(LENGTH "${hex}" length)
  math(EXPR length "${length} / 2")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)" "\\1\n" bytes "${bytes}")
  get_filename_component(extension ${file} LAST_EXT)
  if(extension STREQUAL ".html")
    set(type "text/html; charset=utf-8")
  elseif(extension STREQUAL ".css")
    set(type "text/css; charset=utf-8")
  elseif(extension MATCHES "^\\.m?js$")
    set(type "text/javascript; charset=utf-8")
  elseif(extension STREQUAL ".json")
    set(type "application/json")
  elseif(extension STREQUAL ".svg")
    set(type "image/svg+xml")
  elseif(extension STREQUAL ".png")
    set(type "image/png")
  elseif(extension STREQUAL ".ico")
    set(type "image/x-icon")
  elseif(extension STREQUAL ".woff2")
    set(type "font/woff2")
  elseif(extension STREQUAL ".webmanifest")
    set(type "application/manifest+json")
  else()
    set(type "text/plain; charset=utf-8")
  endif()
  string(APPEND arrays "constexpr unsigned char kFile${index}[] = {\n${bytes}0};\n")
  set(entry "\"${type}\", bytes(kFile${index}, ${length}), \"\\\"${sha}\\\"\"")
  string(APPEND table "      {\"/${file}\", ${entry}},\n")
  if(file STREQUAL "index.html")
    string(APPEND table "      {\"/\", ${entry}},\n")
  endif()
  math(EXPR index "${index} + 1")
endforeach()
file(WRITE ${OUTPUT}.tmp "// Generated from web/ by embed_assets.cmake.
#include \"server/server_config.h\"

namespace capstan::server {
namespace {
[[maybe_unused]] std::string_view bytes(const unsigned char* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}
${arrays}}  // namespace

const std::vector<Asset>& embedded_assets() {
  static const std::vector<Asset> assets = {
${table}  };
  return assets;
}

}  // namespace capstan::server
")
file(COPY_FILE ${OUTPUT}.tmp ${OUTPUT} ONLY_IF_DIFFERENT)
file(REMOVE ${OUTPUT}.tmp)
file(TOUCH ${OUTPUT})
