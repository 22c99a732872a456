#include "base/check.h"
#include "replay/import.h"
#include "replay/limits.h"

// A row of JSON Lines, or a file of questions, by the first byte.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  const auto format = static_cast<ImportFormat>(data[0] % (static_cast<int>(ImportFormat::kGame24) + 1));
  ImportOptions options;
  options.format = format;
  const auto row = ParseRow(text, options);
  if (row.ok()) {
    v1::Trajectory again;
    QUERN_CHECK(!row->uid().empty());
    const Status good = ParseTrajectory(row->SerializeAsString(), RecordLimits(), &again);
    if (!good.ok()) QUERN_CHECK(good.message().find('\n') == std::string::npos, good.message());
  } else {
    QUERN_CHECK(row.status().message().find('\n') == std::string::npos, row.status().message());
  }
  (void)DetectQuestionFormat(text);
  if (const auto questions = QuestionFormatOf(format)) {
    const auto read = ReadQuestionFile(*questions, text, "f");
    if (!read.ok()) QUERN_CHECK(read.status().message().find('\n') == std::string::npos, read.status().message());
  }
  return 0;
}
