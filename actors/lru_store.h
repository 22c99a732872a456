#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <utility>

namespace quern {

// Values by key, of which the least recently found or kept go first. Not thread-safe.
template <typename Key, typename Value>
class LruStore {
 public:
  // Null: not there. Valid until the next call of Keep, Shrink or Clear.
  const Value* Find(const Key& key) {
    const auto found = entries_.find(key);
    if (found == entries_.end()) return nullptr;
    order_.splice(order_.end(), order_, found->second.place);
    return &found->second.value;
  }
  // `bytes`: what the value takes. One that is there already stays.
  void Keep(const Key& key, Value value, int64_t bytes) {
    const auto [entry, fresh] = entries_.try_emplace(key);
    if (!fresh) return;
    entry->second = {std::move(value), bytes, order_.insert(order_.end(), &entry->first)};
    bytes_ += bytes;
  }
  // Lets go until at most so many bytes are left.
  void Shrink(int64_t bytes) {
    while (bytes_ > bytes && !order_.empty()) {
      const auto oldest = entries_.find(*order_.front());
      bytes_ -= oldest->second.bytes;
      order_.pop_front();
      entries_.erase(oldest);
    }
  }
  void Clear() { Shrink(-1); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    Value value{};
    int64_t bytes = 0;
    typename std::list<const Key*>::iterator place{};
  };
  std::map<Key, Entry> entries_;
  std::list<const Key*> order_;
  int64_t bytes_ = 0;
};

}  // namespace quern
