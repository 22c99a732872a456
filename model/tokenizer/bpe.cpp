#include "model/tokenizer/bpe.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "base/strings.h"
#include "model/tokenizer/unicode.h"

namespace quern {
namespace {

constexpr size_t kShortWord = 48;  // symbols; up to here scanning for the best pair beats a queue
constexpr size_t kLowCharacters = 0x800;

}  // namespace

Result<std::unique_ptr<Bpe>> Bpe::FromJson(const Json& model, const std::string& where) {
  auto bpe = std::make_unique<Bpe>();
  const Json& dropout = JsonField(model, "dropout");
  if (!dropout.is_null() && dropout != 0.0) return Unimplemented(where + ": \"dropout\" is not supported");
  QUERN_ASSIGN_OR_RETURN(bpe->prefix_, JsonString(model, "continuing_subword_prefix", "", where));
  QUERN_ASSIGN_OR_RETURN(bpe->suffix_, JsonString(model, "end_of_word_suffix", "", where));
  QUERN_ASSIGN_OR_RETURN(bpe->fuse_unk_, JsonBool(model, "fuse_unk", false, where));
  QUERN_ASSIGN_OR_RETURN(bpe->byte_fallback_, JsonBool(model, "byte_fallback", false, where));
  QUERN_ASSIGN_OR_RETURN(bpe->ignore_merges_, JsonBool(model, "ignore_merges", false, where));
  QUERN_RETURN_IF_ERROR(bpe->ReadVocabulary(JsonField(model, "vocab"), where));
  QUERN_RETURN_IF_ERROR(bpe->ReadMerges(JsonField(model, "merges"), where));
  QUERN_ASSIGN_OR_RETURN(const std::string unk, JsonString(model, "unk_token", "", where));
  if (!unk.empty()) {
    bpe->unk_id_ = bpe->vocabulary_.Find(unk);
    if (bpe->unk_id_ < 0) return InvalidArgument(StrCat(where, ": unk_token \"", unk, "\" is not in the vocabulary"));
  }
  return bpe;
}

Status Bpe::ReadVocabulary(const Json& vocab, const std::string& where) {
  if (!vocab.is_object()) return InvalidArgument(where + ": \"vocab\" must be an object of pieces and ids");
  vocabulary_.Reserve(vocab.size());
  for (const auto& [piece, id] : vocab.items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > Vocabulary::kMaxId)
      return InvalidArgument(StrCat(where, ": id ", JsonExcerpt(id), " of piece ", JsonExcerpt(piece),
                                    " is not in [0, ", Vocabulary::kMaxId, "]"));
    QUERN_RETURN_IF_ERROR(vocabulary_.Add(piece, id.get<int64_t>()).Annotate(where));
  }
  for (int b = 0; b < 256; ++b) byte_ids_[b] = vocabulary_.Find(StrFormat("<0x%02X>", b));
  if (prefix_.empty() && suffix_.empty()) {
    for (size_t c = 0; c < kLowCharacters; ++c) {
      std::string text;
      AppendUtf8(static_cast<char32_t>(c), &text);
      low_symbols_.push_back(vocabulary_.Find(text));
    }
  }
  whole_ = std::make_unique<std::atomic<Whole>[]>(static_cast<size_t>(vocabulary_.limit()));
  return {};
}

Status Bpe::ReadMerges(const Json& merges, const std::string& where) {
  if (!merges.is_array()) return InvalidArgument(where + ": \"merges\" must be a list");
  size_t slots = 64;
  while (slots < merges.size() * 2) slots *= 2;
  merges_.assign(slots, {});
  int32_t rank = 0;
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const Json& merge = merges[i];
    std::string_view left, right;
    if (merge.is_string()) {
      const std::string_view text = merge.get_ref<const std::string&>();
      if (text.substr(0, 8) == "#version") continue;
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
        return InvalidArgument(
            StrCat(where, ": merge ", i, " is not two pieces with a space between: ", JsonExcerpt(merge)));
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get_ref<const std::string&>();
      right = merge[1].get_ref<const std::string&>();
    } else {
      return InvalidArgument(
          StrCat(where, ": merge ", i, " must be a string or a pair of strings, not ", JsonExcerpt(merge)));
    }
    joined.assign(left);
    joined.append(right.size() >= prefix_.size() ? right.substr(prefix_.size()) : std::string_view());
    const int32_t left_id = vocabulary_.Find(left), right_id = vocabulary_.Find(right), id = vocabulary_.Find(joined);
    if (left_id < 0 || right_id < 0 || id < 0)
      return InvalidArgument(StrCat(where, ": merge ", i, ": piece \"",
                                    left_id < 0 ? left : (right_id < 0 ? right : joined),
                                    "\" is not in the vocabulary"));
    AddMerge(left_id, right_id, rank++, id);
  }
  return {};
}

void Bpe::AddMerge(int32_t left, int32_t right, int32_t rank, int32_t id) {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  size_t slot = (pair * 0x9e3779b97f4a7c15ull >> 20) & (merges_.size() - 1);
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair) slot = (slot + 1) & (merges_.size() - 1);
  merges_[slot] = {pair, rank, id};
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  size_t slot = (pair * 0x9e3779b97f4a7c15ull >> 20) & (merges_.size() - 1);
  while (merges_[slot].pair != kNoPair) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    slot = (slot + 1) & (merges_.size() - 1);
  }
  return nullptr;
}

int32_t Bpe::SymbolOf(std::string_view character, bool first, bool last) const {
  if (!low_symbols_.empty() && character.size() <= 2) {
    size_t pos = 0;
    return low_symbols_[NextCodePoint(character, &pos)];
  }
  if (prefix_.empty() && suffix_.empty()) return vocabulary_.Find(character);
  return vocabulary_.Find(StrCat(first ? "" : prefix_, character, last ? suffix_ : ""));
}

// One symbol per character; characters without one become bytes, else the unknown token, else nothing.
void Bpe::FirstSymbols(std::string_view word, std::vector<int32_t>* symbols) const {
  int unknown = 0;  // unknown tokens not written yet: a byte fallback does not flush them, as in the reference
  for (size_t pos = 0; pos < word.size();) {
    const size_t begin = pos;
    NextCodePoint(word, &pos);
    const std::string_view character = word.substr(begin, pos - begin);
    const int32_t id = SymbolOf(character, begin == 0, pos == word.size());
    if (id >= 0) {
      if (unknown > 0) symbols->push_back(unk_id_);
      unknown = 0;
      symbols->push_back(id);
      continue;
    }
    if (byte_fallback_) {
      std::string spelled(character);
      if (!prefix_.empty() || !suffix_.empty())
        spelled = StrCat(begin == 0 ? "" : prefix_, character, pos == word.size() ? suffix_ : "");
      const auto byte_id = [this](char c) { return byte_ids_[static_cast<uint8_t>(c)]; };
      if (std::all_of(spelled.begin(), spelled.end(), [&](char c) { return byte_id(c) >= 0; })) {
        for (const char c : spelled) symbols->push_back(byte_id(c));
        continue;
      }
    }
    if (unk_id_ < 0) continue;
    if (unknown > 0 && !fuse_unk_) symbols->push_back(unk_id_);
    unknown = 1;
  }
  if (unknown > 0) symbols->push_back(unk_id_);
}

void Bpe::MergeWord(std::vector<int32_t>* symbols) const {
  if (symbols->size() < 2) return;
  symbols->size() <= kShortWord ? MergeShort(symbols) : MergeLong(symbols);
}

void Bpe::MergeShort(std::vector<int32_t>* symbols) const {
  int32_t rank[kShortWord], merged[kShortWord];  // of the pair (i, i + 1)
  int32_t* s = symbols->data();
  size_t count = symbols->size();
  const auto look_up = [&](size_t i) {
    const Merge* merge = FindMerge(s[i], s[i + 1]);
    rank[i] = merge == nullptr ? kNoMerge : merge->rank;
    merged[i] = merge == nullptr ? -1 : merge->id;
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    const size_t best = static_cast<size_t>(std::min_element(rank, rank + count - 1) - rank);
    if (rank[best] == kNoMerge) break;
    s[best] = merged[best];
    for (size_t i = best + 1; i + 1 < count; ++i) {
      s[i] = s[i + 1];
      rank[i] = rank[i + 1 < count - 1 ? i + 1 : i];
      merged[i] = merged[i + 1 < count - 1 ? i + 1 : i];
    }
    --count;
    if (best + 1 < count) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  symbols->resize(count);
}

void Bpe::MergeLong(std::vector<int32_t>* symbols) const {
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1: none
  };
  struct Candidate {
    int32_t rank, position, id;
    bool operator>(const Candidate& other) const {
      return std::tie(rank, position) > std::tie(other.rank, other.position);
    }
  };
  const auto count = static_cast<int32_t>(symbols->size());
  std::vector<Symbol> list(symbols->size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int32_t i) {
    if (i < 0 || list[i].next < 0) return;
    if (const Merge* merge = FindMerge(list[i].id, list[list[i].next].id)) queue.push({merge->rank, i, merge->id});
  };
  for (int32_t i = 0; i < count; ++i) list[i] = {(*symbols)[i], i - 1, i + 1 < count ? i + 1 : -1};
  for (int32_t i = 0; i < count; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& symbol = list[top.position];
    if (symbol.id < 0 || symbol.next < 0) continue;
    const Merge* merge = FindMerge(symbol.id, list[symbol.next].id);
    if (merge == nullptr || merge->id != top.id) continue;  // the pair changed since it was queued
    Symbol& right = list[symbol.next];
    symbol.id = top.id;
    symbol.next = right.next;
    right.id = -1;
    if (symbol.next >= 0) list[symbol.next].previous = top.position;
    offer(symbol.previous);
    offer(top.position);
  }
  symbols->clear();
  for (int32_t i = 0; i >= 0; i = list[i].next) symbols->push_back(list[i].id);
}

void Bpe::Encode(std::string_view word, std::vector<int32_t>* ids) const {
  const int32_t whole = vocabulary_.Find(word);
  Whole known = Whole::kNo;
  if (whole >= 0) {
    if (ignore_merges_) return ids->push_back(whole);
    known = whole_[whole].load(std::memory_order_relaxed);
    if (known == Whole::kYes) return ids->push_back(whole);
  }
  static thread_local std::vector<int32_t> symbols;
  symbols.clear();
  FirstSymbols(word, &symbols);
  MergeWord(&symbols);
  if (whole >= 0 && known == Whole::kUnknown)
    whole_[whole].store(symbols.size() == 1 && symbols[0] == whole ? Whole::kYes : Whole::kNo,
                        std::memory_order_relaxed);
  ids->insert(ids->end(), symbols.begin(), symbols.end());
}

}  // namespace quern
