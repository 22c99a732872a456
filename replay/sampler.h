#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/replay.pb.h"
#include "replay/candidate_set.h"
#include "replay/filter.h"
#include "replay/record_table.h"

namespace quern {

// A pseudo-random permutation of [0, size) that is evaluated one point at a time: a Feistel network over Philox on the
// next even power of two, walked along its cycles back into the range (Black and Rogaway, "Ciphers with arbitrary
// finite domains", 2002).
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t seed, uint64_t epoch);
  uint64_t operator()(uint64_t index) const;

 private:
  uint64_t size_;
  uint64_t seed_;
  uint64_t epoch_;
  int half_bits_;
};

// Entries first .. first + count - 1 of the endless sequence that passes over [0, size) again and again, each time in
// another order: within a pass nothing repeats. size > 0.
std::vector<uint64_t> SequenceIndices(uint64_t size, uint64_t seed, uint64_t first, uint64_t count);

// Draws by rank: rank r (from 1) has probability r ^ -exponent over the sum of all. Draw `position` of a seed is a pure
// function. Weights are whole numbers, so that sums are exact and the order of adding does not matter: prefix sums and
// a binary search do what a sum tree does where priorities change.
class RankDraws {
 public:
  RankDraws(uint64_t size, double exponent);
  uint64_t operator()(uint64_t seed, uint64_t position) const;  // [0, size)
  double Probability(uint64_t index) const;

 private:
  std::vector<uint64_t> sums_;  // up to and with each rank
};

// Chooses records for sample requests. Keeps the candidates of recent filters, which grow with the store: a uniform
// draw at a new watermark costs what is new. Other selectors, top_fraction and window sort lists of their own, which
// are kept for their watermark. Thread-safe; the table must not change during a call.
class Sampler {
 public:
  // Whether record `number` passes the filter's prompt_contains.
  using TextMatcher = std::function<Result<bool>(uint64_t number, const RowFilter& filter)>;
  struct Choice {
    std::vector<uint64_t> numbers;
    uint64_t candidates = 0;
    std::vector<v1::PartSummary> parts;  // of requests that ask for it
  };
  Result<Choice> Choose(const RecordTable& table, const v1::SampleRequest& request, const TextMatcher& matches_text);
  void Clear();

 private:
  using Numbers = std::shared_ptr<const std::vector<uint64_t>>;
  // What is drawn from: the first `size` of a list, or where there is none of a set.
  struct Pool {
    std::shared_ptr<const CandidateSet> set;
    Numbers list;
    uint64_t size = 0;
    uint64_t operator[](uint64_t rank) const { return list != nullptr ? (*list)[rank] : (*set)[rank]; }
  };
  struct Set {
    std::string key;  // the filter
    std::shared_ptr<CandidateSet> candidates;
  };
  struct List {
    std::string key;  // the filter and what else decides
    uint64_t watermark = 0;
    Numbers numbers;
  };
  Status ChooseParts(const RecordTable& table, const v1::SampleRequest& request, const TextMatcher& matches_text,
                     Choice& choice);
  // The set may grow with the next call.
  Result<std::shared_ptr<const CandidateSet>> Candidates(const RecordTable& table, const v1::Filter& filter,
                                                         uint64_t watermark, const TextMatcher& matches_text);
  Result<Numbers> TopCandidates(const RecordTable& table, const v1::SampleRequest& request, const std::string& filter,
                                const CandidateSet& all);
  // Of the candidates, with top_fraction, the first `limit` (0: all), of those the newest `window` (0: all), in the
  // order that the selector asks for. Counts the candidates.
  Result<Pool> Arranged(const RecordTable& table, const v1::SampleRequest& request, const v1::Filter& filter,
                        uint64_t limit, const TextMatcher& matches_text, Choice* choice);
  // Entries first .. first + count - 1 of the sequence that the selector makes of `from`.
  Status Draw(const v1::SampleRequest& request, const Pool& from, uint64_t seed, uint64_t first, uint64_t count,
              std::vector<uint64_t>* numbers);
  static v1::PartSummary Describe(const RecordTable& table, const Pool& pool);
  Numbers Find(const std::string& key, uint64_t watermark);
  void Remember(const std::string& key, uint64_t watermark, Numbers numbers);
  Set& RememberSet(const std::string& key, std::shared_ptr<CandidateSet> candidates);

  std::mutex mutex_;
  std::list<Set> sets_;    // newest use first
  std::list<List> lists_;  // the same
  // Of the last prioritised request: they depend on nothing else.
  double ranks_exponent_ = 0;
  uint64_t ranks_size_ = 0;
  std::shared_ptr<const RankDraws> ranks_;
};

}  // namespace quern
