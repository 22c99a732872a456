#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/status.h"

namespace quern {

using Json = nlohmann::json;

// Parses a whole document; the error names `origin` and the byte. Never throws.
Result<Json> ParseJson(std::string_view text, const std::string& origin);
Result<Json> ReadJsonFile(const std::string& path);

// The value as one line for an error message, cut to about 60 bytes.
std::string JsonExcerpt(const Json& value);

// `text` with control characters escaped and cut to about 500 bytes: names from files may hold anything, errors are one
// line.
std::string OneLine(const std::string& text);
Status OneLine(const Status& status);

// object[key], or null where `object` is no object or lacks the key.
const Json& JsonField(const Json& object, const char* key);
// Typed fields; absent and null give `fallback`, another type is an error that names `where`.key.
Result<bool> JsonBool(const Json& object, const char* key, bool fallback, const std::string& where);
Result<std::string> JsonString(const Json& object, const char* key, const std::string& fallback,
                               const std::string& where);
Result<int64_t> JsonInt(const Json& object, const char* key, int64_t fallback, int64_t min, int64_t max,
                        const std::string& where);

}  // namespace quern
