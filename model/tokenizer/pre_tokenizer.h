#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/hf/json_reader.h"

namespace quern {

// A text and the parts it is cut into, in order; parts may leave gaps (removed text) but are never empty.
struct PieceList {
  struct Piece {
    size_t begin = 0;
    size_t end = 0;
    bool at_start = false;  // begins with the first character of the whole input
  };
  std::string text;
  std::vector<Piece> pieces;

  std::string_view View(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

// Cuts text into the words that the BPE model sees one by one. Thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void Apply(PieceList* list) const = 0;
};

// Null for JSON null.
Result<std::unique_ptr<PreTokenizer>> MakePreTokenizer(const Json& json, const std::string& where);

}  // namespace quern
