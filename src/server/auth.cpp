#include "server/auth.h"

#include <algorithm>

namespace capstan::server {

bool equal_constant_time(std::string_view a, std::string_view b) {
  // Every byte of `a` (the presented key) is visited, whatever `b` is.
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    const char other = b.empty() ? '\0' : b[i % b.size()];
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(other);
  }
  return difference == 0;
}

std::string_view presented_key(const HttpRequest& request) {
  const std::string_view authorization = request.header("authorization");
  static constexpr std::string_view kBearer = "bearer ";
  if (authorization.size() > kBearer.size() &&
      std::equal(kBearer.begin(), kBearer.end(), authorization.begin(), [](char want, char have) {
        return want == (have >= 'A' && have <= 'Z' ? static_cast<char>(have - 'A' + 'a') : have);
      })) {
    std::string_view key = authorization.substr(kBearer.size());
    while (!key.empty() && key.front() == ' ') key.remove_prefix(1);
    return key;
  }
  return request.header("x-api-key");
}

bool authorized(const HttpRequest& request, Access access, std::string_view api_key,
                std::string_view admin_api_key) {
  if (access == Access::kOpen || request.method == "OPTIONS") return true;
  std::string_view wanted = api_key;
  if (access == Access::kAdmin && !admin_api_key.empty()) wanted = admin_api_key;
  return wanted.empty() || equal_constant_time(presented_key(request), wanted);
}

}  // namespace capstan::server
