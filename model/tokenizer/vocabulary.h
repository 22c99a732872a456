#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

// Pieces and their ids, both ways. Immutable after the last Add; then thread-safe.
class Vocabulary {
 public:
  static constexpr int32_t kMaxId = (1 << 22) - 1;

  void Reserve(size_t pieces);
  // A piece that is already there gets the new id; ids may leave gaps.
  Status Add(std::string_view piece, int64_t id);
  int32_t Find(std::string_view piece) const;  // -1: not there
  std::string_view Piece(int32_t id) const;    // empty: not there
  bool Has(int32_t id) const { return id >= 0 && id < limit() && entries_[id].used; }
  int32_t limit() const { return static_cast<int32_t>(entries_.size()); }  // largest id + 1
  size_t size() const { return count_; }                                   // distinct pieces

 private:
  struct Entry {
    uint32_t begin = 0;
    uint32_t length = 0;
    bool used = false;
  };
  size_t Slot(std::string_view piece) const;
  void Grow(size_t slots);

  std::string text_;            // all pieces
  std::vector<Entry> entries_;  // by id
  std::vector<int32_t> slots_;  // open addressing, -1: free
  size_t count_ = 0;
};

}  // namespace quern
