#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/hf/json_reader.h"
#include "model/tokenizer/vocabulary.h"

namespace quern {

// Byte-pair encoding (Sennrich et al. 2016) with the options of tokenizer.json: merges by rank, leftmost first. A word
// of n characters costs O(n log n). Thread-safe.
class Bpe {
 public:
  static Result<std::unique_ptr<Bpe>> FromJson(const Json& model, const std::string& where);

  // Appends the ids of one word of valid UTF-8.
  void Encode(std::string_view word, std::vector<int32_t>* ids) const;
  const Vocabulary& vocabulary() const { return vocabulary_; }
  int32_t unk_id() const { return unk_id_; }  // -1: none

 private:
  struct Merge {
    uint64_t pair = kNoPair;  // left id << 32 | right id
    int32_t rank = 0;
    int32_t id = 0;
  };
  enum class Whole : uint8_t { kUnknown, kYes, kNo };  // does the piece itself encode to one token?
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr int32_t kNoMerge = INT32_MAX;

  Status ReadVocabulary(const Json& vocab, const std::string& where);
  Status ReadMerges(const Json& merges, const std::string& where);
  const Merge* FindMerge(int32_t left, int32_t right) const;
  void AddMerge(int32_t left, int32_t right, int32_t rank, int32_t id);
  void FirstSymbols(std::string_view word, std::vector<int32_t>* symbols) const;
  void MergeWord(std::vector<int32_t>* symbols) const;
  void MergeShort(std::vector<int32_t>* symbols) const;
  void MergeLong(std::vector<int32_t>* symbols) const;
  int32_t SymbolOf(std::string_view character, bool first, bool last) const;

  Vocabulary vocabulary_;
  std::vector<Merge> merges_;                    // open addressing
  std::vector<int32_t> low_symbols_;             // ids of the characters below U+0800, where no affixes are in use
  int32_t byte_ids_[256];                        // of "<0xNN>", -1: not there
  std::unique_ptr<std::atomic<Whole>[]> whole_;  // by id, found out at first use
  std::string prefix_, suffix_;                  // continuing_subword_prefix, end_of_word_suffix
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false, byte_fallback_ = false, ignore_merges_ = false;
};

}  // namespace quern
