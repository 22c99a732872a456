#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "actors/environment.h"

namespace quern {

// Streams of Random(seed, stream): an environment and a player may be given the same episode seed, and the player must
// not thereby draw the hidden task.
inline constexpr uint64_t kTaskStream = 0x7461736b;
inline constexpr uint64_t kPlayerStream = 0x706c6179;

// Reads options by name and remembers the first mistake, which Finish() returns; so callers read first and check once.
class OptionReader {
 public:
  // owner: how errors name the section, e.g. "environment wordle" or "player best of wordle".
  OptionReader(std::string owner, const Options& options);

  std::string Text(const std::string& name, const std::string& fallback);
  int Integer(const std::string& name, int fallback, int least, int most);
  double Number(const std::string& name, double fallback, double least, double most);
  bool Flag(const std::string& name, bool fallback);                                     // true|false
  std::string Choice(const std::string& name, const std::vector<std::string>& choices);  // the first is the default
  // The first bad value, or the first option nobody asked for (with the nearest known name), or ok.
  Status Finish() const;

 private:
  const std::string* Find(const std::string& name);
  void Fail(const std::string& name, const std::string& value, const std::string& want);

  std::string owner_;
  const Options& options_;
  std::set<std::string> known_;
  Status status_;
};

// `unknown WHAT "NAME"; did you mean "NEAREST"? (known: ...)`
Status UnknownName(const std::string& what, const std::string& name, const std::vector<std::string>& known);
// base_dir/file unless `file` is absolute.
std::string ResolvePath(const std::string& base_dir, const std::string& file);
// Which of `count` tasks an episode plays: in_turn: seed mod count, so that seeds 0..count-1 visit each once; else by
// chance.
uint64_t PickTask(uint64_t seed, uint64_t count, bool in_turn);
// The distinct characters (UTF-8 sequences) of the texts, sorted.
std::vector<std::string> DistinctCharacters(const std::vector<std::string>& texts);
// Without white space at either end.
std::string Trim(const std::string& text);

}  // namespace quern
