#include "model/tokenizer/tokenizer.h"

#include <filesystem>

#include "base/file.h"
#include "base/strings.h"
#include "model/tokenizer/tokenizer_impl.h"
#include "model/tokenizer/unicode.h"

namespace quern {

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::string& path) {
  const bool is_folder = std::filesystem::is_directory(path);
  const std::string folder = is_folder ? path : std::filesystem::path(path).parent_path().string();
  const std::string json_path = is_folder ? JoinPath(path, "tokenizer.json") : path;
  const std::string config_path = folder.empty() ? "tokenizer_config.json" : JoinPath(folder, "tokenizer_config.json");
  std::string json, config;
  if (PathExists(config_path)) {
    QUERN_ASSIGN_OR_RETURN(config, ReadFile(config_path));
  }
  if (PathExists(json_path)) {
    QUERN_ASSIGN_OR_RETURN(json, ReadFile(json_path));
    return Parse(json, config, json_path);
  }
  if (is_folder && !config.empty()) {
    QUERN_ASSIGN_OR_RETURN(const Json document, ParseJson(config, config_path));
    if (!JsonField(document, "char_ords").is_null()) return Parse("", config, config_path);
  }
  if (is_folder && PathExists(JoinPath(path, "tokenizer.model")))
    return Unimplemented(path +
                         ": has only tokenizer.model; save it as tokenizer.json with the transformers library first");
  return NotFound(json_path + ": no such file; a tokenizer.json or a tokenizer_config.json with char_ords is needed");
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::Parse(std::string_view tokenizer_json, std::string_view config,
                                                          const std::string& origin) {
  auto impl = std::make_unique<Impl>();
  if (tokenizer_json.empty()) {
    QUERN_ASSIGN_OR_RETURN(const Json document, ParseJson(config, origin));
    QUERN_RETURN_IF_ERROR(OneLine(impl->ReadCharacters(document, origin)));
  } else {
    QUERN_ASSIGN_OR_RETURN(const Json document, ParseJson(tokenizer_json, origin));
    QUERN_RETURN_IF_ERROR(OneLine(impl->ReadTokenizerJson(document, origin)));
    if (!config.empty()) {
      const auto name = std::filesystem::path(origin).parent_path() / "tokenizer_config.json";
      QUERN_RETURN_IF_ERROR(OneLine(impl->ReadConfig(config, name.string())));
    }
  }
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool add_special) const {
  std::string storage;
  text = ValidUtf8(text, &storage);
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (impl_->bpe == nullptr) {
    impl_->EncodeCharacters(text, &ids);
  } else {
    std::vector<TextPart> parts;
    impl_->added.Split(text, false, &parts);
    for (const TextPart& part : parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        impl_->EncodePart(text.substr(part.begin, part.end - part.begin), part.begin == 0, &ids);
      }
    }
  }
  if (add_special) impl_->post_processor.Apply(&ids);
  return ids;
}

void Tokenizer::Impl::EncodePart(std::string_view text, bool at_start, std::vector<int32_t>* ids) const {
  std::string normalized;
  if (normalizer != nullptr) {
    normalized = text;
    normalizer->Apply(&normalized, &at_start);
    text = normalized;
  }
  if (!added.has_normalized()) return EncodeWords(text, at_start, ids);
  std::vector<TextPart> parts;
  added.Split(text, true, &parts);
  for (const TextPart& part : parts) {
    if (part.id >= 0) {
      ids->push_back(part.id);
    } else {
      EncodeWords(text.substr(part.begin, part.end - part.begin), at_start && part.begin == 0, ids);
    }
  }
}

void Tokenizer::Impl::EncodeWords(std::string_view text, bool at_start, std::vector<int32_t>* ids) const {
  if (text.empty()) return;
  if (pre_tokenizer == nullptr) return bpe->Encode(text, ids);
  PieceList list;
  list.text = text;
  list.pieces.push_back({0, text.size(), at_start});
  pre_tokenizer->Apply(&list);
  for (const PieceList::Piece& piece : list.pieces) bpe->Encode(list.View(piece), ids);
}

void Tokenizer::Impl::EncodeCharacters(std::string_view text, std::vector<int32_t>* ids) const {
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    NextCodePoint(text, &pos);
    const int32_t id = pieces.Find(text.substr(begin, pos - begin));
    ids->push_back(id >= 0 ? id : unk);
  }
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  const bool bytes_only = impl_->decoder.byte_level_only();
  std::string bytes;
  std::vector<std::string> pieces;
  for (const int32_t id : ids) {
    const Impl::Token* token = impl_->Find(id);
    if (token == nullptr || (skip_special && token->special)) continue;
    if (bytes_only) {
      AppendBytesOfPiece(token->piece, &bytes);
    } else {
      pieces.push_back(token->piece);
    }
  }
  if (!bytes_only) return impl_->decoder.Decode(std::move(pieces));
  return IsValidUtf8(bytes) ? bytes : ReplaceInvalidUtf8(bytes);
}

std::string_view Tokenizer::TokenText(int32_t id) const {
  const Impl::Token* token = impl_->Find(id);
  return token == nullptr ? std::string_view() : token->piece;
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view piece) const {
  const int32_t id = impl_->pieces.Find(piece);
  if (id < 0) return std::nullopt;
  return id;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  const Impl::Token* token = impl_->Find(id);
  return token != nullptr && token->special;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->tokens.size()); }

namespace {
std::optional<int32_t> OrNothing(int32_t id) { return id < 0 ? std::nullopt : std::optional<int32_t>(id); }
}  // namespace

std::optional<int32_t> Tokenizer::bos_id() const { return OrNothing(impl_->bos); }
std::optional<int32_t> Tokenizer::eos_id() const { return OrNothing(impl_->eos); }
std::optional<int32_t> Tokenizer::unk_id() const { return OrNothing(impl_->unk); }
std::optional<int32_t> Tokenizer::pad_id() const { return OrNothing(impl_->pad); }

}  // namespace quern
