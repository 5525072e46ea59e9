// The way of every generation request, whatever its dialect: prepare, submit, wait, answer.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "server/app_state.h"
#include "server/choice.h"
#include "server/exchange.h"

namespace capstan::server {

using Prepare = Result<GenerationCall> (*)(const AppState& app, std::string_view body);
using MakeWriter = std::function<std::unique_ptr<ResponseWriter>(const GenerationCall& request)>;

Task<HttpResponse> generate(AppState& app, Exchange& exchange, Prepare prepare,
                            MakeWriter make_writer);

}  // namespace capstan::server
