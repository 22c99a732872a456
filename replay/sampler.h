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

// Chooses records for sample requests; keeps the sorted candidate lists of recent (filter, watermark) pairs and extends
// them as the store grows. Thread-safe; the table must not change during a call.
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
  Status ChooseParts(const RecordTable& table, const v1::SampleRequest& request, const TextMatcher& matches_text,
                     Choice& choice);
  using Numbers = std::shared_ptr<const std::vector<uint64_t>>;
  struct Entry {
    std::string key;  // the filter and top fraction
    uint64_t watermark = 0;
    Numbers numbers;
  };
  Result<Numbers> Candidates(const RecordTable& table, const v1::Filter& filter, uint64_t watermark,
                             const TextMatcher& matches_text);
  Result<Numbers> TopCandidates(const RecordTable& table, const v1::Filter& filter, float top_fraction,
                                uint64_t watermark, const TextMatcher& matches_text, uint64_t* matched);
  Numbers Find(const std::string& key, uint64_t watermark);
  void Remember(const std::string& key, uint64_t watermark, Numbers numbers);

  std::mutex mutex_;
  std::list<Entry> entries_;  // newest use first
};

}  // namespace quern
