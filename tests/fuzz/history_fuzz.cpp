#include "base/log.h"
#include "service/policies.h"
#include "service/result.h"
#include "service/run_history.h"
#include "tests/fuzz/scratch.h"

// A run directory's files as the page and the commands read them: journal, metrics, events, result, weights.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  SetLogLevel(LogLevel::kError);
  std::string_view input(reinterpret_cast<const char*>(data), size);
  Run run;
  run.directory = Scratch();
  for (const char* name : {"journal.jsonl", "metrics.jsonl", "events.jsonl", "result.json"})
    Put(run.Path(name), NextPart(input));
  Put(run.Path("weights.json"), input);
  RunHistory history(run);
  history.Refresh();
  history.Refresh();
  for (const auto& [name, curve] : history.curves())
    for (const auto& [number, values] : curve.numbers) QUERN_CHECK(values.size() <= curve.steps.size(), number);
  (void)ResultFromJson(history.result_json());
  (void)ResultFromJson(std::string(input));
  const auto weights = LoadWeights(run);
  if (!weights.ok()) QUERN_CHECK(weights.status().message().find('\n') == std::string::npos);
  return 0;
}
