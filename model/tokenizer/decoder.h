#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/hf/json_reader.h"

namespace quern {

// Turns pieces back into text, in steps that rewrite the list of pieces: ByteLevel, Replace, ByteFallback, Fuse, Strip,
// Metaspace, BPEDecoder and sequences of them. Thread-safe.
class DecodeStep {
 public:
  virtual ~DecodeStep() = default;
  virtual void Apply(std::vector<std::string>* pieces) const = 0;
};

class Decoder {
 public:
  static Result<Decoder> FromJson(const Json& json, const std::string& where);
  // Pieces stand next to each other without a step in between (character tokenizers).
  static Decoder Concatenate();

  std::string Decode(std::vector<std::string> pieces) const;
  // Nothing but the byte-level map: then pieces can be decoded one by one into bytes.
  bool byte_level_only() const { return byte_level_only_; }

 private:
  static Status Append(const Json& json, const std::string& where, Decoder* decoder);

  std::vector<std::unique_ptr<DecodeStep>> steps_;
  bool join_with_spaces_ = true;  // without a decoder pieces are words
  bool byte_level_only_ = false;
};

// The bytes that a byte-level piece stands for; the piece itself where it has other characters (added tokens).
void AppendBytesOfPiece(std::string_view piece, std::string* bytes);

}  // namespace quern
