#pragma once

#include <memory>
#include <string>

#include "actors/environment.h"

namespace quern {

// One line per environment; the registry (registry.cpp) names them. Options and players are documented in the headers
// wordle.h, maze.h, questions.h, contains.h, reasoning.h,
// sentences.h and text.h.
using FactoryResult = Result<std::shared_ptr<const EnvironmentFactory>>;
FactoryResult MakeWordleFactory(const Options& options, const std::string& base_dir);
FactoryResult MakeMazeFactory(const Options& options, const std::string& base_dir);
FactoryResult MakeDatasetFactory(const Options& options, const std::string& base_dir);
FactoryResult MakeDigitsFactory(const Options& options, const std::string& base_dir);
FactoryResult MakeContainsFactory(const Options& options, const std::string& base_dir);
FactoryResult MakeReasoningFactory(const Options& options, const std::string& base_dir);
FactoryResult MakeSentencesFactory(const Options& options, const std::string& base_dir);
FactoryResult MakeTextFactory(const Options& options, const std::string& base_dir);

}  // namespace quern
