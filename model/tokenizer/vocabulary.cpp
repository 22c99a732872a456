#include "model/tokenizer/vocabulary.h"

#include <functional>

#include "base/strings.h"

namespace quern {

void Vocabulary::Reserve(size_t pieces) {
  size_t slots = 64;
  while (slots < pieces * 2) slots *= 2;
  if (slots > slots_.size()) Grow(slots);
}

void Vocabulary::Grow(size_t slots) {
  std::vector<int32_t> old = std::move(slots_);
  slots_.assign(slots, -1);
  for (const int32_t id : old)
    if (id >= 0) slots_[Slot(Piece(id))] = id;
}

size_t Vocabulary::Slot(std::string_view piece) const {
  size_t slot = std::hash<std::string_view>()(piece) & (slots_.size() - 1);
  while (slots_[slot] >= 0 && Piece(slots_[slot]) != piece) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

Status Vocabulary::Add(std::string_view piece, int64_t id) {
  if (id < 0 || id > kMaxId) return InvalidArgument(StrCat("token id ", id, " is not in [0, ", kMaxId, "]"));
  if (text_.size() + piece.size() > UINT32_MAX) return InvalidArgument("the vocabulary is too large");
  if (slots_.size() < (count_ + 1) * 2) Grow(slots_.empty() ? 64 : slots_.size() * 2);
  if (id >= limit()) entries_.resize(static_cast<size_t>(id) + 1);
  const size_t slot = Slot(piece);
  if (entries_[id].used && slots_[slot] != id)
    return InvalidArgument(
        StrCat("token id ", id, " belongs to both \"", Piece(static_cast<int32_t>(id)), "\" and \"", piece, "\""));
  count_ += slots_[slot] < 0;
  entries_[id] = {static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(piece.size()), true};
  text_.append(piece);
  slots_[slot] = static_cast<int32_t>(id);
  return {};
}

int32_t Vocabulary::Find(std::string_view piece) const { return slots_.empty() ? -1 : slots_[Slot(piece)]; }

std::string_view Vocabulary::Piece(int32_t id) const {
  if (!Has(id)) return {};
  return std::string_view(text_).substr(entries_[id].begin, entries_[id].length);
}

}  // namespace quern
