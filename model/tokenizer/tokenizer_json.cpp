#include <algorithm>

#include "base/strings.h"
#include "model/tokenizer/tokenizer_impl.h"
#include "model/tokenizer/unicode.h"

namespace quern {

Status Tokenizer::Impl::SetToken(std::string_view piece, int32_t id, bool special) {
  if (id >= static_cast<int32_t>(tokens.size())) tokens.resize(static_cast<size_t>(id) + 1);
  tokens[id] = {std::string(piece), special, true};
  if (pieces.Find(piece) != id) return pieces.Add(piece, id);
  return {};
}

Status Tokenizer::Impl::ReadTokenizerJson(const Json& json, const std::string& origin) {
  if (!json.is_object()) return InvalidArgument(origin + ": must hold a JSON object");
  const Json& model = JsonField(json, "model");
  if (!model.is_object()) return InvalidArgument(origin + ": \"model\" is missing or not an object");
  // Files older than the "type" field are told apart by their content; BPE alone has merges.
  QUERN_ASSIGN_OR_RETURN(const std::string type,
                         JsonString(model, "type", model.contains("merges") ? "BPE" : "unknown", origin));
  if (type != "BPE") return Unimplemented(StrCat(origin, ": model \"", type, "\" is not supported (BPE is)"));
  QUERN_ASSIGN_OR_RETURN(bpe, Bpe::FromJson(model, origin + ": model"));
  QUERN_ASSIGN_OR_RETURN(normalizer, MakeNormalizer(JsonField(json, "normalizer"), origin + ": normalizer"));
  QUERN_ASSIGN_OR_RETURN(pre_tokenizer, MakePreTokenizer(JsonField(json, "pre_tokenizer"), origin + ": pre_tokenizer"));
  QUERN_ASSIGN_OR_RETURN(post_processor,
                         PostProcessor::FromJson(JsonField(json, "post_processor"), origin + ": post_processor"));
  QUERN_ASSIGN_OR_RETURN(decoder, Decoder::FromJson(JsonField(json, "decoder"), origin + ": decoder"));
  QUERN_ASSIGN_OR_RETURN(
      added, AddedTokens::FromJson(JsonField(json, "added_tokens"), bpe->vocabulary(), normalizer.get(), origin));

  const Vocabulary& vocabulary = bpe->vocabulary();
  tokens.resize(static_cast<size_t>(vocabulary.limit()));
  pieces.Reserve(vocabulary.size() + added.tokens().size());
  for (int32_t id = 0; id < vocabulary.limit(); ++id)
    if (vocabulary.Has(id)) QUERN_RETURN_IF_ERROR(SetToken(vocabulary.Piece(id), id, false).Annotate(origin));
  for (const AddedToken& token : added.tokens()) {
    const Token* holder = Find(token.id);
    if (holder != nullptr && holder->piece != token.content)
      return InvalidArgument(StrCat(origin, ": added token \"", token.content, "\" would get id ", token.id, " of \"",
                                    holder->piece, "\""));
    QUERN_RETURN_IF_ERROR(SetToken(token.content, token.id, token.special).Annotate(origin));
  }
  unk = bpe->unk_id();
  return {};
}

// Tokens by their role; a name is a string or an object with "content".
Status Tokenizer::Impl::ReadConfig(std::string_view config, const std::string& origin) {
  QUERN_ASSIGN_OR_RETURN(const Json json, ParseJson(config, origin));
  const auto read = [&](const char* key, int32_t* id) {
    const Json& value = JsonField(json, key);
    const Json& content = value.is_object() ? JsonField(value, "content") : value;
    if (!content.is_string()) return;
    const int32_t found = pieces.Find(content.get_ref<const std::string&>());
    if (found >= 0) *id = found;
  };
  read("bos_token", &bos);
  read("eos_token", &eos);
  read("unk_token", &unk);
  read("pad_token", &pad);
  return {};
}

// The character tokenizer of verl's digit-completion fixture: separator, end, padding and unknown, then one id per
// entry of char_ords.
Status Tokenizer::Impl::ReadCharacters(const Json& config, const std::string& origin) {
  const Json& ords = JsonField(config, "char_ords");
  if (!ords.is_array() || ords.empty())
    return InvalidArgument(origin + ": \"char_ords\" must be a list of code points");
  int32_t id = 0;
  for (const char* special : {"S", "E", "P", "U"}) QUERN_RETURN_IF_ERROR(SetToken(special, id++, true));
  for (const Json& ord : ords) {
    const int64_t c = ord.is_number_unsigned() && ord.get<uint64_t>() <= 0x10ffff ? ord.get<int64_t>() : -1;
    if (c < 0 || (c >= 0xd800 && c <= 0xdfff))
      return InvalidArgument(StrCat(origin, ": \"char_ords\" holds ", JsonExcerpt(ord), ", which is no character"));
    std::string text;
    AppendUtf8(static_cast<char32_t>(c), &text);
    if (pieces.Find(text) >= 0)
      return InvalidArgument(StrCat(origin, ": \"char_ords\" holds ", c, " twice or a special letter"));
    QUERN_RETURN_IF_ERROR(SetToken(text, id++, false));
  }
  eos = 1;
  pad = 2;
  unk = 3;
  return {};
}

}  // namespace quern
