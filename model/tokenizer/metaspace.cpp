#include "model/tokenizer/metaspace.h"

#include "base/strings.h"
#include "model/tokenizer/unicode.h"

namespace quern {

Result<MetaspaceOptions> ReadMetaspace(const Json& json, const std::string& where) {
  MetaspaceOptions options;
  QUERN_ASSIGN_OR_RETURN(options.replacement, JsonString(json, "replacement", "\xe2\x96\x81", where));
  size_t pos = 0;
  if (!options.replacement.empty()) NextCodePoint(options.replacement, &pos);
  if (options.replacement.empty() || pos != options.replacement.size())
    return InvalidArgument(where + ": Metaspace needs one character \"replacement\"");
  // Files written before prepend_scheme existed have add_prefix_space alone.
  QUERN_ASSIGN_OR_RETURN(const bool prefix, JsonBool(json, "add_prefix_space", true, where));
  QUERN_ASSIGN_OR_RETURN(const std::string scheme,
                         JsonString(json, "prepend_scheme", prefix ? "always" : "never", where));
  if (scheme == "always") {
    options.prepend = MetaspaceOptions::Prepend::kAlways;
  } else if (scheme == "first") {
    options.prepend = MetaspaceOptions::Prepend::kFirst;
  } else if (scheme == "never") {
    options.prepend = MetaspaceOptions::Prepend::kNever;
  } else {
    return Unimplemented(StrCat(where, ": prepend_scheme \"", scheme, "\" is not supported"));
  }
  QUERN_ASSIGN_OR_RETURN(options.split, JsonBool(json, "split", true, where));
  return options;
}

}  // namespace quern
