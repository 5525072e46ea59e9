// The chat page: files built into the program. "/" is the page for browsers and a line of text for
// everything else. No key is asked for: the files hold nothing secret.
#include "server/handlers.h"

namespace capstan::server {
namespace {

HttpResponse serve_asset(const Asset& asset, const HttpRequest& request) {
  HttpResponse response;
  response.content_type = asset.content_type;
  response.headers.emplace_back("ETag", asset.etag);
  response.headers.emplace_back("Cache-Control", "no-cache");  // ask again; usually 304
  response.headers.emplace_back("X-Content-Type-Options", "nosniff");
  const std::string_view known = request.header("if-none-match");
  if (!asset.etag.empty() && known.find(asset.etag) != std::string_view::npos) {
    response.status = 304;
  } else {
    response.body = asset.body;
  }
  return response;
}

HttpResponse root(const Asset* page, const HttpRequest& request) {
  const bool browser = request.header("accept").find("text/html") != std::string_view::npos;
  HttpResponse response =
      page != nullptr && browser
          ? serve_asset(*page, request)
          : text_response(200, "Capstan is running. The API is under /v1; see /v1/models.\n");
  response.headers.emplace_back("Vary", "Accept");
  return response;
}

}  // namespace

void add_page_routes(AppState& app) {
  const Asset* page = nullptr;
  for (const Asset& asset : app.config.assets) {
    if (asset.path == "/") {
      page = &asset;
      continue;
    }
    app.router.add({.pattern = asset.path,
                    .methods = {"GET"},
                    .access = Access::kOpen,
                    .handler = immediate([&asset](const HttpRequest& request) {
                      return serve_asset(asset, request);
                    })});
  }
  app.router.add(
      {.pattern = "/",
       .methods = {"GET"},
       .access = Access::kOpen,
       .handler = immediate([page](const HttpRequest& request) { return root(page, request); })});
}

}  // namespace capstan::server
