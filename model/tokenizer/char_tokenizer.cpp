#include "model/tokenizer/char_tokenizer.h"

#include <unordered_set>

#include "base/file.h"
#include "base/strings.h"
#include "model/hf/json_reader.h"
#include "model/tokenizer/unicode.h"

namespace quern {
namespace {

bool IsOneCharacter(std::string_view text) {
  size_t pos = 0;
  NextCodePoint(text, &pos);
  return pos == text.size();
}

}  // namespace

Result<std::string> MakeTokenizerJson(const std::vector<std::string>& pieces,
                                      const std::vector<std::string>& specials) {
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object(), added = nlohmann::ordered_json::array();
  std::unordered_set<std::string> seen;
  std::vector<std::pair<std::string, int>> order;
  bool has_unk = false;
  for (const bool special : {true, false}) {
    for (const std::string& piece : special ? specials : pieces) {
      const int id = static_cast<int>(order.size());
      if (piece.empty() || !IsValidUtf8(piece))
        return InvalidArgument(StrCat(special ? "special token " : "piece ", id, " is empty or not UTF-8"));
      if (!seen.insert(piece).second) return InvalidArgument(StrCat("piece \"", piece, "\" appears twice"));
      order.emplace_back(piece, id);
      has_unk = has_unk || (special && piece == "<unk>");
      if (!special && IsOneCharacter(piece)) continue;
      added.push_back({{"id", id},
                       {"content", piece},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", special}});
    }
  }
  for (auto& [piece, id] : order) vocab.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(piece, id);
  const nlohmann::ordered_json json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder", {{"type", "Fuse"}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", has_unk ? nlohmann::ordered_json("<unk>") : nlohmann::ordered_json()},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", nlohmann::ordered_json::array()}}}};
  return json.dump(2) + "\n";
}

std::string MakeTokenizerConfigJson(const SpecialTokenNames& names, const std::string& chat_template) {
  nlohmann::ordered_json json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                 {"clean_up_tokenization_spaces", false},
                                 {"model_max_length", 1000000}};
  const auto add = [&json](const char* key, const std::string& value) {
    if (!value.empty()) json[key] = value;
  };
  add("bos_token", names.bos);
  add("eos_token", names.eos);
  add("unk_token", names.unk);
  add("pad_token", names.pad);
  add("chat_template", chat_template);
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Status WriteTokenizer(const std::string& dir, const std::vector<std::string>& pieces,
                      const std::vector<std::string>& specials, const SpecialTokenNames& names,
                      const std::string& chat_template) {
  QUERN_ASSIGN_OR_RETURN(const std::string json, MakeTokenizerJson(pieces, specials));
  QUERN_RETURN_IF_ERROR(MakeDirectories(dir));
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(dir, "tokenizer.json"), json));
  return WriteFileAtomic(JoinPath(dir, "tokenizer_config.json"), MakeTokenizerConfigJson(names, chat_template));
}

}  // namespace quern
