// --log-requests: what came in and what went out, at levels 0 (metadata) to 3 (full text).
#pragma once

#include "server/call.h"
#include "server/generation_call.h"
#include "server/http_message.h"

namespace capstan::server {

void log_received(const AppState& app, const HttpRequest& http, const GenerationCall& request);
void log_finished(const AppState& app, const GenerationCall& request, const Call& call);

/// The lines themselves, without "Receive: "/"Finish: "; text or one JSON object.
std::string received_line(const ServerConfig& config, const HttpRequest& http,
                          const GenerationCall& request);
std::string finished_line(const ServerConfig& config, const GenerationCall& request,
                          const Call& call);

}  // namespace capstan::server
