#include <nlohmann/json.hpp>

#include "base/check.h"
#include "model/chat_template/jinja.h"

// Any text is a template that renders within its limits, or one line of error; twice the same.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  static const auto context = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "tool_calls": [{"id": "1"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "x": {"a": 1, "items": [1.5, "zwei", null]}, "s": "words é", "n": 3, "add_generation_prompt": true, "bos_token": "<s>"})");
  jinja::RenderOptions options;
  options.dialect = size % 2 == 0 ? jinja::Dialect::kJinja2 : jinja::Dialect::kJson;
  options.limits.steps = 50'000;
  options.limits.work_bytes = 4 << 20;
  options.limits.output_bytes = 1 << 18;
  options.now = std::tm{};
  const auto parsed = jinja::Template::Parse({reinterpret_cast<const char*>(data), size}, "t", options.limits);
  if (!parsed.ok()) {
    QUERN_CHECK(parsed.status().message().find('\n') == std::string::npos);
    return 0;
  }
  const auto first = (*parsed)->Render(context, options);
  const auto second = (*parsed)->Render(context, options);
  QUERN_CHECK(first.ok() == second.ok());
  if (first.ok()) {
    QUERN_CHECK(first->text == second->text);
    QUERN_CHECK(first->text.size() <= options.limits.output_bytes);
  } else {
    QUERN_CHECK(first.status().message() == second.status().message(), first.status().message());
    QUERN_CHECK(first.status().message().find('\n') == std::string::npos);
  }
  return 0;
}
