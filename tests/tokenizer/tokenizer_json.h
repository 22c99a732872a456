#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "model/hf/json_reader.h"
#include "model/tokenizer/tokenizer.h"

namespace quern {

// A tokenizer.json with every stage empty, to be filled in by a test.
inline Json EmptyTokenizer() {
  return {{"version", "1.0"},
          {"added_tokens", Json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder", {{"type", "Fuse"}}},
          {"model", {{"type", "BPE"}, {"unk_token", nullptr}, {"vocab", Json::object()}, {"merges", Json::array()}}}};
}

// Single characters of `text` as the vocabulary, ids in order.
inline Json Letters(const std::string& text) {
  Json vocab = Json::object();
  for (size_t i = 0; i < text.size(); ++i) vocab[text.substr(i, 1)] = i;
  return vocab;
}

inline Json AddedJson(int id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", false}};
}

inline std::shared_ptr<const Tokenizer> MustParse(const Json& json, const std::string& config = {}) {
  auto tokenizer = Tokenizer::Parse(json.dump(), config, "tokenizer.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  return tokenizer.ok() ? *tokenizer : nullptr;
}

inline void ExpectParseError(const Json& json, const std::string& part) {
  const auto tokenizer = Tokenizer::Parse(json.dump(), "", "tokenizer.json");
  ASSERT_FALSE(tokenizer.ok()) << part;
  const std::string& message = tokenizer.status().message();
  EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_EQ(message.find("tokenizer.json: "), 0u) << message;
}

using Ids = std::vector<int32_t>;

}  // namespace quern
