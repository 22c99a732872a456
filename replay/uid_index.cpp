#include "replay/uid_index.h"

#include <utility>

namespace quern {

namespace {
constexpr size_t kFirstSlots = 16;
}  // namespace

void UidIndex::Shard::Put(Slot slot) {
  size_t at = slot.tag & Mask();
  while (slots[at].number != 0) at = (at + 1) & Mask();
  slots[at] = slot;
}

void UidIndex::Add(uint64_t hash, uint32_t number) {
  Shard& shard = shards_[hash % kShards];
  if (4 * (shard.used + 1) > 3 * shard.slots.size()) {
    std::vector<Slot> old(shard.slots.empty() ? kFirstSlots : 2 * shard.slots.size());
    old.swap(shard.slots);
    for (const Slot& slot : old)
      if (slot.number != 0) shard.Put(slot);
  }
  ++shard.used;
  shard.Put({.tag = TagOf(hash), .number = number});
}

}  // namespace quern
