// Chat messages: validation with field paths, and the context their template is rendered with.
#pragma once

#include <boost/json/array.hpp>
#include <string>

#include "base/result.h"
#include "server/json_fields.h"
#include "text/chat_template.h"

namespace capstan::server {

/// Checked messages in the shape templates expect. Roles are lower case, `developer` is `system`,
/// content is a string or a list of text parts, null content "" and tool call arguments objects,
/// unless the template's `forms` say otherwise.
Result<json::array> read_messages(const json::value* messages, const text::MessageForms& forms);

/// The text of a message's content as read_messages left it.
std::string content_text(const json::object& message);

}  // namespace capstan::server
