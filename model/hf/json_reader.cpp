#include "model/hf/json_reader.h"

#include "base/file.h"
#include "base/strings.h"

namespace quern {

Result<Json> ParseJson(std::string_view text, const std::string& origin) {
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& error) {
    return InvalidArgument(StrCat(origin, ": not valid JSON at byte ", error.byte, " of ", text.size()));
  } catch (const Json::exception& error) {
    return InvalidArgument(StrCat(origin, ": not valid JSON: ", error.what()));
  }
}

Result<Json> ReadJsonFile(const std::string& path) {
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJson(text, path);
}

std::string JsonExcerpt(const Json& value) {
  if (value.is_structured() && value.size() > 8) return value.is_array() ? "[...]" : "{...}";
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

std::string OneLine(const std::string& text) {
  std::string line;
  for (const char c : text.substr(0, 500)) {
    if (c == '\n') {
      line += "\\n";
    } else {
      line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    }
  }
  return text.size() > 500 ? line + "..." : line;
}

Status OneLine(const Status& status) { return status.ok() ? status : Status(status.code(), OneLine(status.message())); }

const Json& JsonField(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

Result<bool> JsonBool(const Json& object, const char* key, bool fallback, const std::string& where) {
  const Json& value = JsonField(object, key);
  if (value.is_null()) return fallback;
  if (!value.is_boolean())
    return InvalidArgument(StrCat(where, ": \"", key, "\" must be true or false, not ", JsonExcerpt(value)));
  return value.get<bool>();
}

Result<std::string> JsonString(const Json& object, const char* key, const std::string& fallback,
                               const std::string& where) {
  const Json& value = JsonField(object, key);
  if (value.is_null()) return fallback;
  if (!value.is_string())
    return InvalidArgument(StrCat(where, ": \"", key, "\" must be a string, not ", JsonExcerpt(value)));
  return value.get<std::string>();
}

Result<int64_t> JsonInt(const Json& object, const char* key, int64_t fallback, int64_t min, int64_t max,
                        const std::string& where) {
  const Json& value = JsonField(object, key);
  if (value.is_null()) return fallback;
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                                               : value.is_number_integer();
  if (!fits || value.get<int64_t>() < min || value.get<int64_t>() > max)
    return InvalidArgument(
        StrCat(where, ": \"", key, "\" must be an integer from ", min, " to ", max, ", not ", JsonExcerpt(value)));
  return value.get<int64_t>();
}

}  // namespace quern
