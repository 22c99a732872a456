#include "actors/environments/factories.h"
#include "actors/environments/options.h"

namespace quern {

namespace {

struct Entry {
  const char* name;
  FactoryResult (*make)(const Options& options, const std::string& base_dir);
};

constexpr Entry kEntries[] = {
    {"wordle", MakeWordleFactory},       {"maze", MakeMazeFactory},         {"dataset", MakeDatasetFactory},
    {"digits", MakeDigitsFactory},       {"contains", MakeContainsFactory}, {"reasoning", MakeReasoningFactory},
    {"sentences", MakeSentencesFactory}, {"text", MakeTextFactory},
};

}  // namespace

FactoryResult MakeEnvironmentFactory(const std::string& name, const Options& options, const std::string& base_dir) {
  for (const Entry& entry : kEntries) {
    if (name == entry.name) return entry.make(options, base_dir);
  }
  return UnknownName("environment", name, EnvironmentNames());
}

std::vector<std::string> EnvironmentNames() {
  std::vector<std::string> names;
  for (const Entry& entry : kEntries) names.emplace_back(entry.name);
  return names;
}

}  // namespace quern
