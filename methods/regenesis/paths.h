#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace quern {

// Where the numbered steps of a text begin: the first paragraph that opens with step 1 and has a later one that opens
// with step 2 ("1.", "1)", "1:", "Step 1", with or without list or heading marks before them).
std::optional<size_t> FirstStep(std::span<const std::string> paragraphs);
bool HasSteps(const std::string& text);

// A path as training text: from its first step on, after `opener`; without numbered steps as it is. White space at the
// end of the text is kept: the path's closing text may be some.
std::string TrainingPath(const std::string& path, const std::string& opener);

struct Majority {
  std::string answer;
  double share = 0;  // of all answers, those that are empty (nothing found) among them
};
// The answer given most often; nothing when two lead equally or its share is below min_share. Empty answers cannot win.
std::optional<Majority> MajorityVote(std::span<const std::string> answers, double min_share);

// What is known about one chain when it is judged.
struct PathFacts {
  bool finished = true;  // it came to its own end, not to a limit on tokens
  bool found = false;    // an answer could be read
  bool matches = false;  // and is the known one, or the majority's
  bool checked = true;   // the self-check did not object
  bool has_steps = false;
  int64_t tokens = 0;
};
struct PathLimits {
  int64_t max_tokens = 0;  // 0: any length
  bool require_steps = false;
};
// Why a path does not pass; empty: it does.
std::string RejectReason(const PathFacts& facts, const PathLimits& limits);

// Of the paths that passed: which to keep, at most `limit`. Equal texts count once. Paths of guidelines that have fewer
// kept paths go first, so that `limit` distinct guidelines are kept where there are as many; by chance otherwise, a
// function of the seed. Ascending positions.
struct PassedPath {
  uint32_t guideline = 0;
  std::string_view text;
};
std::vector<size_t> SelectPaths(std::span<const PassedPath> passed, size_t limit, uint64_t seed);

// What a self-check says: its first word if that is yes or no, else the last yes or no in it; nothing without either.
std::optional<bool> ReadYesNo(const std::string& text);

}  // namespace quern
