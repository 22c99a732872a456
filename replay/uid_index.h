#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace quern {

// From the hash of a uid to its record's number: open addressing in 256 tables, so that none of them is ever large to
// grow. About 14 bytes a record. Not thread-safe.
class UidIndex {
 public:
  // Adds without looking whether it is there. `number` > 0.
  void Add(uint64_t hash, uint32_t number);
  // The first number added under this hash for which `is_it(number)` holds; 0: none.
  template <typename Function>
  uint32_t Find(uint64_t hash, const Function& is_it) const {
    const Shard& shard = shards_[hash % kShards];
    if (shard.slots.empty()) return 0;
    const uint32_t tag = TagOf(hash);
    for (size_t at = tag & shard.Mask();; at = (at + 1) & shard.Mask()) {
      const Slot& slot = shard.slots[at];
      if (slot.number == 0) return 0;
      if (slot.tag == tag && is_it(slot.number)) return slot.number;
    }
  }

 private:
  static constexpr size_t kShards = 256;
  struct Slot {
    uint32_t tag = 0;
    uint32_t number = 0;  // 0: free
  };
  struct Shard {
    std::vector<Slot> slots;  // a power of two of them, at most three quarters in use
    size_t used = 0;
    size_t Mask() const { return slots.size() - 1; }
    void Put(Slot slot);
  };
  // Where a slot lies follows from its tag, so that a table grows without a look at the rows.
  static uint32_t TagOf(uint64_t hash) { return static_cast<uint32_t>(hash >> 8); }

  std::array<Shard, kShards> shards_;
};

}  // namespace quern
