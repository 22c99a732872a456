#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "compute/ops.h"

namespace quern {

// KvLayout::kPageTokens consecutive positions of a text, for every model of a policy. A page knows the tokens it holds
// and the page before it, so that another text that begins alike can use it.
struct KvPage {
  std::vector<void*> data;  // one per model
  int32_t users = 0;        // sequences whose page tables hold it
  uint64_t serial = 0;      // never used again after the page has gone
  uint64_t parent = 0;      // serial of the page before it; 0: it is the first
  int32_t filled = 0;       // leading positions that are computed
  std::array<int32_t, KvLayout::kPageTokens> tokens;
  size_t sibling = 0;  // index among the pages with the same parent
  std::list<KvPage*>::iterator idle;
};

// Pages from a byte budget that is fixed at the start, in the backend's memory, which is taken in slabs as it is first
// needed. A page that no sequence uses stays findable until its memory is needed, the least recently used first. Not
// thread-safe.
class KvCache {
 public:
  // One layout per model. Room for at least one page whatever the budget. Without `shares`, what a page held is
  // forgotten with its last user, and its memory is the next to be used again. `ops` must outlive the cache.
  KvCache(Ops& ops, std::vector<KvLayout> layouts, int64_t bytes, bool shares = true);

  const std::vector<KvLayout>& layouts() const { return layouts_; }
  int64_t max_pages() const { return max_pages_; }
  int64_t used_pages() const { return made_ - static_cast<int64_t>(free_.size() + idle_.size()); }
  int64_t available_pages() const { return max_pages_ - used_pages(); }

  // An empty page after `before` (null: the first of a text) with one user; null when every page is in use.
  KvPage* Take(const KvPage* before);
  // The next positions of `page` are computed; a full page or one with users may not be written below `filled`.
  void Fill(KvPage& page, const int32_t* tokens, int64_t count);
  void Share(KvPage& page);
  void Release(KvPage& page);

  // The longest beginning of `tokens` that is computed: full pages, in order, then perhaps a page of which only the
  // first `tail_tokens` agree, to be copied (CopyTail) because its owner may go on. The caller becomes a user of all.
  struct Prefix {
    std::vector<KvPage*> pages;
    KvPage* tail = nullptr;
    int64_t tail_tokens = 0;
  };
  Prefix Find(std::span<const int32_t> tokens);
  // The first `tokens` positions of `tail` become those of the empty page `to`.
  void CopyTail(const KvPage& tail, int64_t tokens, KvPage& to);

  // Forgets what unused pages hold: other weights from now on. No page may be in use.
  void Forget();

 private:
  void Detach(KvPage& page);  // no longer to be found

  Ops& ops_;
  std::vector<KvLayout> layouts_;
  int64_t max_pages_;
  bool shares_;
  int64_t made_ = 0;
  uint64_t next_serial_ = 1;
  std::vector<Tensor> slabs_;
  std::vector<std::unique_ptr<KvPage>> pages_;
  std::vector<KvPage*> free_;
  std::list<KvPage*> idle_;                                      // without users, the least recently used first
  std::unordered_map<uint64_t, std::vector<KvPage*>> children_;  // by the parent's serial
};

}  // namespace quern
