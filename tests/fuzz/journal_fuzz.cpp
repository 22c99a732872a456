#include <unistd.h>
#include <xxhash.h>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/strings.h"
#include "service/journal.h"
#include "tests/fuzz/scratch.h"

// Lines of a journal; those that are JSON objects get the checksum that they would have been written with.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  using Json = nlohmann::ordered_json;
  SetLogLevel(LogLevel::kError);
  std::string text;
  for (const std::string& line : StrSplit(std::string(reinterpret_cast<const char*>(data), size), '\n')) {
    Json event = Json::parse(line, nullptr, false);
    if (!event.is_object()) {
      text += line + "\n";
      continue;
    }
    event.erase("xxh3");
    const std::string plain = event.dump(-1, ' ', false, Json::error_handler_t::replace);
    event["xxh3"] = StrFormat("%016llx", static_cast<unsigned long long>(XXH3_64bits(plain.data(), plain.size())));
    text += event.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  const std::string path = Scratch() + "/journal.jsonl";
  Put(path, text);
  const auto journal = Journal::Open(path);
  if (!journal.ok()) {
    QUERN_CHECK(journal.status().message().find('\n') == std::string::npos, journal.status().message());
    return 0;
  }
  // What was read once is read again.
  const auto again = Journal::Open(path);
  QUERN_CHECK(again.ok(), again.status().ToString());
  QUERN_CHECK((*again)->state().stages.size() == (*journal)->state().stages.size());
  return 0;
}
