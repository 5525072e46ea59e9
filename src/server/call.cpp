#include "server/call.h"

#include "server/app_state.h"

namespace capstan::server {

Call::Call(AppState& app, Exchange& exchange, const GenerationCall& request, ResponseWriter* writer)
    : app_(app),
      exchange_(exchange),
      request_(request),
      writer_(writer),
      created_(exchange.request().received),
      ended_(exchange.executor()) {
  for (const Prompt& prompt : request_.prompts) {
    for (int i = 0; i < request_.n; ++i) {
      choices_.push_back(
          std::make_shared<Choice>(*this, prompt, static_cast<int>(choices_.size()), i == 0));
      if (request_.keep_token_ids) choices_.back()->keep_token_ids();
    }
  }
  open_ = choices_.size();
}

Call::~Call() {
  exchange_.on_disconnect(nullptr);
  detach_all();
  for (const std::string& rid : registered_) app_.live.erase(rid);
}

void Call::detach_all() {
  for (const auto& choice : choices_) choice->detach();
}

std::optional<ApiError> Call::submit() {
  std::vector<std::string> rids = request_.prompt_rids;
  if (rids.empty()) rids.push_back(request_.rid);
  for (std::string& rid : rids) {
    if (!app_.live.insert(rid)) {
      return bad_request(
          "rid: the id \"" + rid +
              "\" is in use by a running request; choose another or wait for its end.",
          "rid");
    }
    registered_.push_back(std::move(rid));
  }
  if (exchange_.disconnected()) {
    client_left_ = true;
    ended_.notify();
    return std::nullopt;
  }
  exchange_.on_disconnect([this] {
    client_left_ = true;
    detach_all();
    ended_.notify();
  });
  size_t next = 0;
  for (const Prompt& prompt : request_.prompts) {
    const uint64_t group = request_.n > 1 ? app_.next_sibling_group.fetch_add(1) : 0;
    for (int i = 0; i < request_.n; ++i, ++next) {
      engine::EngineRequest child;
      child.prompt = prompt.ids;
      child.sampling = prompt.sampling.params;
      child.priority = request_.priority;
      child.cache_salt = request_.cache_salt;
      child.sibling_group = group;
      child.choice_index = i;
      auto id = app_.engine->submit(
          std::move(child),
          [mailbox = exchange_.mailbox(), choice = choices_[next]](engine::OutputEvent&& event) {
            mailbox->push(choice, std::move(event));
          });
      if (!id.ok()) {
        exchange_.on_disconnect(nullptr);
        return from_error(id.error());
      }
      choices_[next]->engine_id = *id;
      app_.live.add_engine_id(rid_of(request_, next / static_cast<size_t>(request_.n)), *id);
    }
  }
  return std::nullopt;
}

void Call::choice_done() {
  if (--open_ == 0) ended_.notify();
}

void Call::fail(ApiError error) {
  if (error_) return;
  error_ = std::move(error);
  detach_all();
  ended_.notify();
}

Usage Call::usage() const {
  Usage total;
  for (const auto& choice : choices_) {
    total.completion_tokens += choice->completion_tokens();
    total.reasoning_tokens += choice->reasoning_tokens();
    if (!choice->first_of_prompt()) continue;
    total.prompt_tokens += choice->prompt_tokens();
    total.cached_tokens += choice->cached_tokens();
  }
  return total;
}

}  // namespace capstan::server
