#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

// The template language of chat templates: Jinja2 as the transformers library sets it up (immutable sandbox,
// trim_blocks, lstrip_blocks, break and continue, {% generation %}, raise_exception, strftime_now, its tojson), with
// limits, so that a hostile template ends with one error. Left out: include, import, extends, block, recursive loops,
// loop.changed, joiner, cycler, varargs, whole numbers beyond 64 bits.
namespace quern::jinja {

// How values behave where engines differ.
enum class Dialect {
  kJinja2,  // as Python: {{ true }} is "True", lists print as repr, 'a' + 1 is an error, select() gives a generator
  kJson,    // as the JavaScript engines: {{ true }} is "true", lists print as JSON, 'a' + 1 is "a1"
};

struct Limits {
  size_t template_bytes = 1 << 20;
  size_t output_bytes = 16 << 20;    // also of any one string
  uint64_t steps = 20'000'000;       // nodes evaluated, elements looked at
  uint64_t work_bytes = 256u << 20;  // bytes of strings and lists made, all together
  int depth = 600;                   // of the evaluation, macro calls included
  int64_t range = 100'000;           // longest range(), as the sandbox has it
};

struct RenderOptions {
  Dialect dialect = Dialect::kJinja2;
  Limits limits = {};
  std::optional<std::tm> now = std::nullopt;  // of strftime_now; by default the local time
};

struct Rendering {
  std::string text;
  std::vector<std::pair<size_t, size_t>> generated;  // bytes [begin, end) of `text` inside {% generation %}
};

// Const methods are thread-safe.
class Template {
 public:
  // Errors are one line, "ORIGIN:LINE: what".
  static Result<std::shared_ptr<const Template>> Parse(std::string_view text, const std::string& origin,
                                                       const Limits& limits = {});
  ~Template();
  // `context`: an object; its members are the variables.
  Result<Rendering> Render(const nlohmann::ordered_json& context, const RenderOptions& options) const;

 private:
  struct Impl;
  explicit Template(std::unique_ptr<Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace quern::jinja
