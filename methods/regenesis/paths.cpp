#include "methods/regenesis/paths.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <utility>

#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Whether the paragraph opens with step `number`.
bool OpensStep(const std::string& paragraph, char number) {
  size_t at = paragraph.find_first_not_of(" \t*#-_>");
  if (at == std::string::npos) return false;
  bool named = false;
  constexpr std::string_view kStep = "step";
  if (paragraph.size() - at > kStep.size()) {
    named = std::equal(kStep.begin(), kStep.end(), paragraph.begin() + static_cast<ptrdiff_t>(at), [](char a, char b) {
      return a == static_cast<char>(std::tolower(static_cast<unsigned char>(b)));
    });
  }
  if (named) {
    at = paragraph.find_first_not_of(" \t#", at + kStep.size());
    if (at == std::string::npos) return false;
  }
  if (paragraph[at] != number) return false;
  const char after = at + 1 < paragraph.size() ? paragraph[at + 1] : '\0';
  if (named) return !IsDigit(after);
  if (after != '.' && after != ')' && after != ':') return false;
  return at + 2 >= paragraph.size() || !IsDigit(paragraph[at + 2]);  // not "1.5"
}

}  // namespace

std::optional<size_t> FirstStep(std::span<const std::string> paragraphs) {
  for (size_t i = 0; i < paragraphs.size(); ++i) {
    if (!OpensStep(paragraphs[i], '1')) continue;
    for (size_t j = i + 1; j < paragraphs.size(); ++j)
      if (OpensStep(paragraphs[j], '2')) return i;
  }
  return std::nullopt;
}

bool HasSteps(const std::string& text) { return FirstStep(StrSplit(text, '\n')).has_value(); }

std::string TrainingPath(const std::string& path, const std::string& opener) {
  const std::vector<std::string> lines = StrSplit(path, '\n');
  const std::optional<size_t> first = FirstStep(lines);
  if (!first) return path;
  return opener + StrJoin({lines.begin() + static_cast<ptrdiff_t>(*first), lines.end()}, "\n");
}

std::optional<Majority> MajorityVote(std::span<const std::string> answers, double min_share) {
  std::map<std::string, size_t> votes;
  for (const std::string& answer : answers)
    if (!answer.empty()) ++votes[answer];
  const auto most =
      std::max_element(votes.begin(), votes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == votes.end()) return std::nullopt;
  const auto equal = std::count_if(votes.begin(), votes.end(), [&](const auto& v) { return v.second == most->second; });
  const double share = static_cast<double>(most->second) / static_cast<double>(answers.size());
  if (equal > 1 || share < min_share) return std::nullopt;
  return Majority{most->first, share};
}

std::string RejectReason(const PathFacts& facts, const PathLimits& limits) {
  if (!facts.finished) return "cut off at a token limit";
  if (!facts.found) return "no answer found";
  if (!facts.matches) return "wrong answer";
  if (!facts.checked) return "self-check says no";
  if (limits.max_tokens > 0 && facts.tokens > limits.max_tokens) return "too long";
  if (limits.require_steps && !facts.has_steps) return "no numbered steps";
  return {};
}

std::vector<size_t> SelectPaths(std::span<const PassedPath> passed, size_t limit, uint64_t seed) {
  std::vector<size_t> order(passed.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  Random random(seed);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
  std::vector<size_t> kept;
  std::set<std::string_view> texts;
  std::map<uint32_t, size_t> of_guideline;
  while (kept.size() < limit) {
    // The first in the random order among the guidelines with the fewest kept.
    size_t best = order.size();
    for (size_t i = 0; i < order.size(); ++i) {
      const PassedPath& path = passed[order[i]];
      if (texts.contains(path.text)) continue;
      if (best == order.size() || of_guideline[path.guideline] < of_guideline[passed[order[best]].guideline]) best = i;
    }
    if (best == order.size()) break;
    const PassedPath& path = passed[order[best]];
    texts.insert(path.text);
    ++of_guideline[path.guideline];
    kept.push_back(order[best]);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

std::optional<bool> ReadYesNo(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (std::isalpha(static_cast<unsigned char>(c)) != 0) {
      words.back() += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.front() == "yes" || words.front() == "no") return words.front() == "yes";
  for (auto word = words.rbegin(); word != words.rend(); ++word)
    if (*word == "yes" || *word == "no") return *word == "yes";
  return std::nullopt;
}

}  // namespace quern
