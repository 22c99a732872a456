#include "base/check.h"
#include "model/hf/model_directory.h"

// Any text is a configuration that survives being written and read, or one line of error.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const auto config = ParseModelConfig({reinterpret_cast<const char*>(data), size}, "config.json");
  if (!config.ok()) {
    QUERN_CHECK(config.status().message().find('\n') == std::string::npos);
    return 0;
  }
  const std::string text = ModelConfigJson(*config, DType::kBf16);
  const auto again = ParseModelConfig(text, "written");
  QUERN_CHECK(again.ok(), again.status().ToString() + text);
  QUERN_CHECK(ModelConfigJson(*again, DType::kBf16) == text, text);
  if (config->layers <= 64) QUERN_CHECK(ParameterLayout(*config).size() > 0);
  return 0;
}
