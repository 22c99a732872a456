#include "model/tokenizer/decoder.h"

#include <optional>

#include "base/strings.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/metaspace.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/unicode.h"

namespace quern {
namespace {

using Pieces = std::vector<std::string>;

class ByteLevel final : public DecodeStep {
 public:
  void Apply(Pieces* pieces) const override {
    std::string bytes;
    for (const std::string& piece : *pieces) AppendBytesOfPiece(piece, &bytes);
    *pieces = {ReplaceInvalidUtf8(bytes)};
  }
};

class Replace final : public DecodeStep {
 public:
  Replace(std::shared_ptr<const Pattern> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void Apply(Pieces* pieces) const override {
    std::vector<Match> matches;
    for (std::string& piece : *pieces) {
      matches.clear();
      pattern_->FindAll(piece, &matches);
      if (matches.empty()) continue;
      std::string out;
      size_t from = 0;
      for (const Match& match : matches) {
        out.append(piece, from, match.begin - from).append(content_);
        from = match.end;
      }
      piece = out.append(piece, from);
    }
  }

 private:
  std::shared_ptr<const Pattern> pattern_;
  std::string content_;
};

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// "<0x0A>" -> 10.
std::optional<uint8_t> ByteOfPiece(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return std::nullopt;
  const int high = HexDigit(piece[3]), low = HexDigit(piece[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

class ByteFallback final : public DecodeStep {
 public:
  void Apply(Pieces* pieces) const override {
    Pieces out;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (IsValidUtf8(bytes)) {
        out.push_back(bytes);
      } else {
        for (size_t i = 0; i < bytes.size(); ++i) out.push_back("\xef\xbf\xbd");
      }
      bytes.clear();
    };
    for (std::string& piece : *pieces) {
      if (const auto byte = ByteOfPiece(piece)) {
        bytes.push_back(static_cast<char>(*byte));
      } else {
        flush();
        out.push_back(std::move(piece));
      }
    }
    flush();
    *pieces = std::move(out);
  }
};

class Fuse final : public DecodeStep {
 public:
  void Apply(Pieces* pieces) const override { *pieces = {StrJoin(*pieces, "")}; }
};

class Strip final : public DecodeStep {
 public:
  Strip(std::string content, int64_t start, int64_t stop) : content_(std::move(content)), start_(start), stop_(stop) {}
  void Apply(Pieces* pieces) const override {
    const size_t size = content_.size();
    for (std::string& piece : *pieces) {
      size_t begin = 0, end = piece.size();
      for (int64_t i = 0; i < start_ && piece.compare(begin, size, content_) == 0; ++i) begin += size;
      for (int64_t i = 0; i < stop_ && end >= begin + size && piece.compare(end - size, size, content_) == 0; ++i)
        end -= size;
      piece = piece.substr(begin, end - begin);
    }
  }

 private:
  std::string content_;
  int64_t start_, stop_;
};

class Metaspace final : public DecodeStep {
 public:
  explicit Metaspace(MetaspaceOptions options) : options_(std::move(options)) {}
  void Apply(Pieces* pieces) const override {
    for (size_t i = 0; i < pieces->size(); ++i) {
      const bool drop = i == 0 && options_.prepend != MetaspaceOptions::Prepend::kNever;
      const std::string& mark = options_.replacement;
      std::string& piece = (*pieces)[i];
      std::string out;
      for (size_t pos = 0; pos < piece.size();) {
        if (piece.compare(pos, mark.size(), mark) == 0) {
          if (!drop) out.push_back(' ');
          pos += mark.size();
        } else {
          out.push_back(piece[pos++]);
        }
      }
      piece = std::move(out);
    }
  }

 private:
  MetaspaceOptions options_;
};

// Word ends are marked by a suffix.
class SuffixDecoder final : public DecodeStep {
 public:
  explicit SuffixDecoder(std::string suffix) : suffix_(std::move(suffix)) {}
  void Apply(Pieces* pieces) const override {
    for (size_t i = 0; i < pieces->size(); ++i) {
      std::string& piece = (*pieces)[i];
      const char* content = i + 1 == pieces->size() ? "" : " ";
      for (size_t pos = 0; (pos = piece.find(suffix_, pos)) != std::string::npos; pos += std::strlen(content))
        piece.replace(pos, suffix_.size(), content);
    }
  }

 private:
  std::string suffix_;
};

}  // namespace

void AppendBytesOfPiece(std::string_view piece, std::string* bytes) {
  const size_t begin = bytes->size();
  for (size_t pos = 0; pos < piece.size();) {
    const auto byte = CodePointToByte(NextCodePoint(piece, &pos));
    if (!byte) {
      bytes->resize(begin);
      bytes->append(piece);
      return;
    }
    bytes->push_back(static_cast<char>(*byte));
  }
}

Decoder Decoder::Concatenate() {
  Decoder decoder;
  decoder.join_with_spaces_ = false;
  return decoder;
}

Result<Decoder> Decoder::FromJson(const Json& json, const std::string& where) {
  Decoder decoder;
  if (json.is_null()) return decoder;
  decoder.join_with_spaces_ = false;
  QUERN_RETURN_IF_ERROR(Append(json, where, &decoder));
  decoder.byte_level_only_ =
      decoder.steps_.size() == 1 && dynamic_cast<const ByteLevel*>(decoder.steps_[0].get()) != nullptr;
  return decoder;
}

Status Decoder::Append(const Json& json, const std::string& where, Decoder* decoder) {
  QUERN_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "type", "", where));
  auto& steps = decoder->steps_;
  if (type == "ByteLevel") {
    steps.push_back(std::make_unique<ByteLevel>());
  } else if (type == "ByteFallback") {
    steps.push_back(std::make_unique<ByteFallback>());
  } else if (type == "Fuse") {
    steps.push_back(std::make_unique<Fuse>());
  } else if (type == "Replace") {
    QUERN_ASSIGN_OR_RETURN(auto pattern, Pattern::FromJson(JsonField(json, "pattern"), where));
    QUERN_ASSIGN_OR_RETURN(const std::string content, JsonString(json, "content", "", where));
    steps.push_back(std::make_unique<Replace>(std::move(pattern), content));
  } else if (type == "Strip") {
    QUERN_ASSIGN_OR_RETURN(const std::string content, JsonString(json, "content", " ", where));
    QUERN_ASSIGN_OR_RETURN(const int64_t start, JsonInt(json, "start", 0, 0, INT32_MAX, where));
    QUERN_ASSIGN_OR_RETURN(const int64_t stop, JsonInt(json, "stop", 0, 0, INT32_MAX, where));
    if (content.empty()) return InvalidArgument(where + ": Strip needs one character \"content\"");
    steps.push_back(std::make_unique<Strip>(content, start, stop));
  } else if (type == "Metaspace") {
    QUERN_ASSIGN_OR_RETURN(MetaspaceOptions options, ReadMetaspace(json, where));
    steps.push_back(std::make_unique<Metaspace>(std::move(options)));
  } else if (type == "BPEDecoder") {
    QUERN_ASSIGN_OR_RETURN(const std::string suffix, JsonString(json, "suffix", "</w>", where));
    if (suffix.empty()) return InvalidArgument(where + ": BPEDecoder needs a \"suffix\"");
    steps.push_back(std::make_unique<SuffixDecoder>(suffix));
  } else if (type == "Sequence") {
    const Json& list = JsonField(json, "decoders");
    if (!list.is_array()) return InvalidArgument(where + ": Sequence needs a list \"decoders\"");
    for (const Json& item : list) {
      if (JsonField(item, "type") == "Sequence")
        return Unimplemented(where + ": a Sequence inside a Sequence is not supported");
      QUERN_RETURN_IF_ERROR(Append(item, where, decoder));
    }
  } else {
    return Unimplemented(StrCat(where, ": decoder \"", type, "\" is not supported"));
  }
  return {};
}

std::string Decoder::Decode(std::vector<std::string> pieces) const {
  if (join_with_spaces_) return StrJoin(pieces, " ");
  for (const auto& step : steps_) step->Apply(&pieces);
  return StrJoin(pieces, "");
}

}  // namespace quern
