// What the tests of all environments share: making one, and playing it with its scripted players.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "actors/environment.h"
#include "actors/environments/options.h"
#include "base/file.h"
#include "base/strings.h"

namespace quern {

using Factory = std::shared_ptr<const EnvironmentFactory>;

inline std::string SourceDir() {
  const char* dir = std::getenv("QUERN_SOURCE_DIR");
  return dir ? dir : ".";
}
inline std::string SharedData(const std::string& path) {
  const char* dir = std::getenv("QUERN_SHARED_DATA");
  return JoinPath(dir ? dir : SourceDir() + "/../shared/data", path);
}
inline Factory Make(const std::string& name, const Options& options = {}) {
  auto factory = MakeEnvironmentFactory(name, options, SourceDir() + "/examples");
  QUERN_CHECK(factory.ok(), factory.status().ToString());
  return *factory;
}
// The message of the error; "" when there is none.
inline std::string ErrorOf(const std::string& name, const Options& options) {
  return MakeEnvironmentFactory(name, options, SourceDir() + "/examples").status().message();
}

struct Episode {
  std::string text;  // everything said, both sides
  double total = 0;
  int steps = 0;
  bool success = false;
};
inline Episode Play(const EnvironmentFactory& factory, const std::string& player_name, uint64_t seed,
                    const Options& options = {}) {
  auto environment = factory.NewEnvironment();
  auto player = factory.NewPlayer(player_name, options);
  QUERN_CHECK(player.ok(), player.status().ToString());
  Episode episode;
  const Observation first = environment->Reset(seed);
  episode.text = first.text;
  (*player)->Reset(seed, first);
  for (bool done = false; !done; ++episode.steps) {
    const std::string action = (*player)->Act();
    const StepOutcome outcome = environment->Step(action);
    (*player)->Observe(outcome);
    episode.text += action + outcome.text;
    episode.total += outcome.reward;
    episode.success = outcome.success;
    done = outcome.done;
  }
  EXPECT_LE(episode.steps, environment->max_turns());
  EXPECT_GE(episode.total, environment->min_return());
  EXPECT_LE(episode.total, environment->max_return());
  return episode;
}

struct Stats {
  double mean = 0;
  double error = 0;
  double success = 0;
};
inline Stats Measure(const EnvironmentFactory& factory, const std::string& player, int games,
                     const Options& options = {}) {
  double sum = 0, squares = 0, won = 0;
  for (int seed = 0; seed < games; ++seed) {
    const Episode episode = Play(factory, player, seed, options);
    sum += episode.total;
    squares += episode.total * episode.total;
    won += episode.success;
  }
  const double mean = sum / games;
  return {mean, std::sqrt((squares / games - mean * mean) / games), won / games};
}
inline void Print(const std::string& what, const Stats& stats) {
  std::printf("  %-46s mean return %7.3f +- %.3f, solved %.3f\n", what.c_str(), stats.mean, stats.error, stats.success);
}

// Whether the text is a sequence of the pieces, by longest match.
inline bool Covered(const std::string& text, const std::vector<std::string>& pieces) {
  for (size_t at = 0; at < text.size();) {
    size_t best = 0;
    for (const std::string& piece : pieces) {
      if (text.compare(at, piece.size(), piece) == 0) best = std::max(best, piece.size());
    }
    if (best == 0) return false;
    at += best;
  }
  return true;
}

class TempFile {
 public:
  TempFile(const std::string& name, const std::string& text) : path_(::testing::TempDir() + name) {
    const Status status = WriteFileAtomic(path_, text);
    QUERN_CHECK(status.ok(), status.ToString());
  }
  ~TempFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace quern
