#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "model/chat_template/jinja.h"

namespace quern {

// The text, or "error: MESSAGE".
inline std::string RenderText(std::string_view text, const nlohmann::ordered_json& context = nullptr,
                              const jinja::RenderOptions& options = {}) {
  const auto parsed = jinja::Template::Parse(text, "t", options.limits);
  if (!parsed.ok()) return "error: " + parsed.status().message();
  const auto rendering = (*parsed)->Render(context.is_null() ? nlohmann::ordered_json::object() : context, options);
  return rendering.ok() ? rendering->text : "error: " + rendering.status().message();
}

}  // namespace quern
