#include "actors/kv_cache.h"

#include <algorithm>

#include "base/check.h"

namespace quern {

namespace {

constexpr int64_t kSlabPages = 16;

int64_t PageBytes(const std::vector<KvLayout>& layouts) {
  int64_t bytes = 0;
  for (const KvLayout& layout : layouts) bytes += layout.page_bytes();
  return bytes;
}

}  // namespace

KvCache::KvCache(Ops& ops, std::vector<KvLayout> layouts, int64_t bytes, bool shares)
    : ops_(ops),
      layouts_(std::move(layouts)),
      max_pages_(std::max<int64_t>(1, bytes / PageBytes(layouts_))),
      shares_(shares) {}

KvPage* KvCache::Take(const KvPage* before) {
  if (free_.empty() && made_ < max_pages_) {
    const int64_t count = std::min(kSlabPages, max_pages_ - made_);
    std::vector<KvPage*> fresh;
    for (int64_t i = 0; i < count; ++i) fresh.push_back(pages_.emplace_back(std::make_unique<KvPage>()).get());
    for (const KvLayout& layout : layouts_) {
      slabs_.emplace_back(DType::kU8, count, layout.page_bytes(), ops_.memory());
      for (int64_t i = 0; i < count; ++i) fresh[static_cast<size_t>(i)]->data.push_back(slabs_.back().Row<uint8_t>(i));
    }
    free_.insert(free_.end(), fresh.rbegin(), fresh.rend());
    made_ += count;
  }
  if (free_.empty()) {
    if (idle_.empty()) return nullptr;
    KvPage* oldest = idle_.front();
    idle_.pop_front();
    Detach(*oldest);
    free_.push_back(oldest);
  }
  KvPage* page = free_.back();
  free_.pop_back();
  page->users = 1;
  page->serial = next_serial_++;
  page->parent = before == nullptr ? 0 : before->serial;
  page->filled = 0;
  return page;
}

void KvCache::Fill(KvPage& page, const int32_t* tokens, int64_t count) {
  QUERN_CHECK(page.users == 1 && page.filled + count <= KvLayout::kPageTokens);
  if (shares_ && page.filled == 0 && count > 0) {
    std::vector<KvPage*>& siblings = children_[page.parent];
    page.sibling = siblings.size();
    siblings.push_back(&page);
  }
  std::copy_n(tokens, count, page.tokens.begin() + page.filled);
  page.filled += static_cast<int32_t>(count);
}

void KvCache::Share(KvPage& page) {
  if (page.users++ == 0) idle_.erase(page.idle);
}

void KvCache::Release(KvPage& page) {
  QUERN_CHECK(page.users > 0);
  if (--page.users > 0) return;
  if (!shares_ || page.filled == 0) {
    free_.push_back(&page);
  } else {
    page.idle = idle_.insert(idle_.end(), &page);
  }
}

void KvCache::Detach(KvPage& page) {
  const auto it = children_.find(page.parent);
  std::vector<KvPage*>& siblings = it->second;
  siblings[page.sibling] = siblings.back();
  siblings[page.sibling]->sibling = page.sibling;
  siblings.pop_back();
  if (siblings.empty()) children_.erase(it);
}

KvCache::Prefix KvCache::Find(std::span<const int32_t> tokens) {
  Prefix found;
  uint64_t parent = 0;
  while (!tokens.empty()) {
    const auto it = children_.find(parent);
    if (it == children_.end()) break;
    KvPage* best = nullptr;
    int64_t best_tokens = 0;
    for (KvPage* page : it->second) {
      const auto limit = std::min<int64_t>(page->filled, static_cast<int64_t>(tokens.size()));
      const auto same =
          std::mismatch(tokens.begin(), tokens.begin() + limit, page->tokens.begin()).first - tokens.begin();
      if (same <= best_tokens) continue;
      best = page;
      best_tokens = same;
      if (same == KvLayout::kPageTokens) break;
    }
    if (best_tokens < KvLayout::kPageTokens) {
      if (best != nullptr) Share(*best);
      found.tail = best;
      found.tail_tokens = best_tokens;
      break;
    }
    Share(*best);
    found.pages.push_back(best);
    parent = best->serial;
    tokens = tokens.subspan(KvLayout::kPageTokens);
  }
  return found;
}

void KvCache::CopyTail(const KvPage& tail, int64_t tokens, KvPage& to) {
  for (size_t m = 0; m < layouts_.size(); ++m) {
    const int64_t bytes = layouts_[m].page_bytes();
    ops_.Copy({tail.data[m], DType::kU8, 1, bytes, bytes}, {to.data[m], DType::kU8, 1, bytes, bytes});
  }
  Fill(to, tail.tokens.data(), tokens);
}

void KvCache::Forget() {
  QUERN_CHECK(used_pages() == 0);
  free_.insert(free_.end(), idle_.begin(), idle_.end());
  idle_.clear();
  children_.clear();
}

}  // namespace quern
