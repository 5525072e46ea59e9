// Who may call what: API key and administrator's key.
#pragma once

#include <string_view>

#include "server/http_message.h"
#include "server/router.h"

namespace capstan::server {

/// Compares in time that depends on the lengths alone.
bool equal_constant_time(std::string_view a, std::string_view b);
/// The key a request carries: `Authorization: Bearer KEY` (scheme in any case) or `X-Api-Key: KEY`.
std::string_view presented_key(const HttpRequest& request);
/// Empty keys ask for nothing.
bool authorized(const HttpRequest& request, Access access, std::string_view api_key,
                std::string_view admin_api_key);

}  // namespace capstan::server
