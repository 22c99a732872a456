#include "model/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/file.h"
#include "base/strings.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/unicode.h"
#include "tests/shared_data.h"
#include "tests/tokenizer/tokenizer_json.h"

namespace quern {
namespace {

using Texts = std::vector<std::string>;

Texts Cut(const Json& json, const std::string& text) {
  const auto pre_tokenizer = MakePreTokenizer(json, "pre_tokenizer");
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status().ToString();
  PieceList list{text, {{0, text.size(), true}}};
  if (pre_tokenizer.ok()) (*pre_tokenizer)->Apply(&list);
  Texts parts;
  for (const auto& piece : list.pieces) parts.emplace_back(list.View(piece));
  return parts;
}

Json SplitJson(const char* behavior, bool invert) {
  return {{"type", "Split"}, {"pattern", {{"Regex", "-"}}}, {"behavior", behavior}, {"invert", invert}};
}

TEST(PreTokenizer, SplitBehaviors) {
  const std::string text = "the-final--countdown";
  EXPECT_EQ(Cut(SplitJson("Removed", false), text), (Texts{"the", "final", "countdown"}));
  EXPECT_EQ(Cut(SplitJson("Isolated", false), text), (Texts{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(Cut(SplitJson("MergedWithPrevious", false), text), (Texts{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(Cut(SplitJson("MergedWithNext", false), text), (Texts{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(Cut(SplitJson("Contiguous", false), text), (Texts{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(Cut(SplitJson("Removed", true), text), (Texts{"-", "-", "-"}));
}

TEST(PreTokenizer, OtherKinds) {
  EXPECT_EQ(Cut({{"type", "Digits"}, {"individual_digits", true}}, "a12"), (Texts{"a", "1", "2"}));
  EXPECT_EQ(Cut({{"type", "Digits"}, {"individual_digits", false}}, "a12½b"), (Texts{"a", "12½", "b"}));
  EXPECT_EQ(Cut({{"type", "Whitespace"}}, "Hey, you_2  ok"), (Texts{"Hey", ",", "you_2", "ok"}));
  EXPECT_EQ(Cut({{"type", "WhitespaceSplit"}}, " a,b\u3000c"), (Texts{"a,b", "c"}));
  EXPECT_EQ(Cut({{"type", "Punctuation"}, {"behavior", "Isolated"}}, "a.,b"), (Texts{"a", ".", ",", "b"}));
  EXPECT_EQ(Cut({{"type", "CharDelimiterSplit"}, {"delimiter", "é"}}, "aébé"), (Texts{"a", "b"}));
  EXPECT_EQ(Cut({{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}}, "a b"),
            (Texts{"▁a", "▁b"}));
  EXPECT_EQ(Cut({{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "never"}, {"split", false}}, "a b"),
            (Texts{"a▁b"}));
  EXPECT_EQ(Cut({{"type", "ByteLevel"}, {"add_prefix_space", true}}, "a can't\n"), (Texts{"Ġa", "Ġcan", "'t", "Ċ"}));
}

Json ByteLevelJson() {
  Json json = EmptyTokenizer();
  for (int b = 0; b < 256; ++b) {
    std::string piece;
    AppendUtf8(ByteToCodePoint()[b], &piece);
    json["model"]["vocab"][piece] = b;
  }
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  json["decoder"] = {{"type", "ByteLevel"}};
  json["added_tokens"] = Json::array({AddedJson(256, "<|end|>")});
  json["added_tokens"][0]["special"] = true;
  return json;
}

Json ByteFallbackJson() {
  Json json = EmptyTokenizer();
  json["model"]["vocab"] = {{"<unk>", 0}, {"▁", 1}, {"a", 2}, {"▁a", 3}};
  for (int b = 0; b < 256; ++b) json["model"]["vocab"][StrFormat("<0x%02X>", b)] = 4 + b;
  json["model"]["merges"] = Json::array({"▁ a"});
  json["model"]["byte_fallback"] = true;
  json["model"]["unk_token"] = "<unk>";
  json["normalizer"] = Json::parse(
      R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]})");
  json["decoder"] = Json::parse(
      R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]})");
  return json;
}

TEST(Tokenizer, ByteLevelEncodesEveryByte) {
  const auto t = MustParse(ByteLevelJson());
  EXPECT_EQ(t->Encode("a é<|end|>", false), (Ids{'a', ' ', 0xc3, 0xa9, 256}));
  EXPECT_EQ(t->Decode(Ids{'a', 256, 0xc3, 0xa9}, true), "aé");
  EXPECT_EQ(t->Decode(Ids{'a', 0xc3}, false), "a\uFFFD");
  EXPECT_EQ(t->Decode(t->Encode("bad \xff!", false), false), "bad \uFFFD!");
  EXPECT_EQ(t->Encode("", true), Ids{});
}

TEST(Tokenizer, ByteFallback) {
  const auto t = MustParse(ByteFallbackJson());
  EXPECT_EQ(t->Encode("a aé", false), (Ids{3, 3, 4 + 0xc3, 4 + 0xa9}));
  EXPECT_EQ(t->Decode(Ids{3, 3, 4 + 0xc3, 4 + 0xa9}, false), "a aé");
  EXPECT_EQ(t->Decode(Ids{3, 4 + 0xc3, 2}, false), "a\uFFFDa");
}

TEST(Tokenizer, StreamsGiveWholeCharacters) {
  for (const Json& json : {ByteLevelJson(), ByteFallbackJson()}) {
    const auto t = MustParse(json);
    const std::string text = "a 日本 é\uFFFDa 😀";
    StreamDecoder decoder(t, true);
    for (int round = 0; round < 2; ++round) {
      std::string out;
      for (const int32_t id : t->Encode(text, false)) {
        const std::string part = decoder.Add(id);
        EXPECT_TRUE(IsValidUtf8(part));
        out += part;
      }
      EXPECT_EQ(out + decoder.Finish(), text);
    }
    EXPECT_EQ(decoder.Add(99999), "");
  }
}

TEST(Tokenizer, StreamOfJunkStaysBounded) {
  for (const Json& json : {ByteLevelJson(), ByteFallbackJson()}) {
    const auto t = MustParse(json);
    const int32_t id = *t->TokenId(json["model"].contains("byte_fallback") ? "<0x80>" : "Ģ");
    StreamDecoder decoder(t, false);
    std::string out;
    for (int i = 0; i < 5000; ++i) out += decoder.Add(id);
    EXPECT_GT(out.size(), 3 * 4900u);
    EXPECT_EQ((out + decoder.Finish()).size(), 3 * 5000u);
  }
}

TEST(Tokenizer, TemplateAddsSpecialTokens) {
  Json json = ByteLevelJson();
  json["post_processor"] = Json::parse(
      R"({"type":"Sequence","processors":[{"type":"ByteLevel"},{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<|end|>":{"id":"<|end|>","ids":[256],"tokens":["<|end|>"]}}}]})");
  const auto t = MustParse(json, R"({"bos_token":{"content":"<|end|>"},"eos_token":"<|end|>","pad_token":null})");
  EXPECT_EQ(t->Encode("a", true), (Ids{256, 'a'}));
  EXPECT_EQ(t->Encode("a", false), (Ids{'a'}));
  EXPECT_EQ(t->Encode("", true), (Ids{256}));
  EXPECT_EQ(t->bos_id(), 256);
  EXPECT_EQ(t->eos_id(), 256);
  EXPECT_EQ(t->pad_id(), std::nullopt);
}

TEST(Tokenizer, ManyThreadsGetTheSameIds) {
  Json json = ByteLevelJson();
  json["model"]["merges"] = Json::array({"a b", "ab c"});
  json["model"]["vocab"]["ab"] = 256;
  json["model"]["vocab"]["abc"] = 257;
  json["added_tokens"] = Json::array();
  const auto t = MustParse(json);
  const Ids expected = t->Encode("abc ab cab", false);
  std::vector<std::thread> threads;
  std::vector<int> bad(4);
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int n = 0; n < 200; ++n) bad[i] += t->Encode("abc ab cab", false) != expected;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bad, std::vector<int>(4));
}

TEST(Tokenizer, RefusesUnknownComponentsByName) {
  const auto with = [](const char* key, const Json& value) {
    Json json = ByteLevelJson();
    json[key] = value;
    return json;
  };
  ExpectParseError(with("normalizer", {{"type", "Precompiled"}}),
                   "normalizer: normalizer \"Precompiled\" is not supported");
  ExpectParseError(with("pre_tokenizer", {{"type", "UnicodeScripts"}}),
                   "pre_tokenizer \"UnicodeScripts\" is not supported");
  ExpectParseError(with("post_processor", {{"type", "Odd"}}), "post_processor \"Odd\" is not supported");
  ExpectParseError(with("decoder", {{"type", "CTC"}}), "decoder \"CTC\" is not supported");
  for (const char* model : {"Unigram", "WordPiece", "WordLevel"})
    ExpectParseError(with("model", {{"type", model}, {"vocab", Json::array()}}),
                     std::string("model \"") + model + "\" is not supported");
}

TEST(Tokenizer, RefusesMalformedFiles) {
  const auto with = [](const char* key, const Json& value) {
    Json json = ByteLevelJson();
    json[key] = value;
    return json;
  };
  for (const char* text : {"{", "[]", "null", "{}", "\xff", "{\"model\":{}}", "{\"model\":[]}"})
    EXPECT_FALSE(Tokenizer::Parse(text, "", "tokenizer.json").ok()) << text;
  ExpectParseError(with("added_tokens", 3), "\"added_tokens\" must be a list");
  ExpectParseError(with("added_tokens", Json::array({{{"content", "x"}}})), "added token 0: \"id\" is missing");
  ExpectParseError(with("added_tokens", Json::array({{{"id", -2}, {"content", "x"}}})), "\"id\" must be an integer");
  ExpectParseError(with("normalizer", 3), "normalizer \"\" is not supported");
  ExpectParseError(with("normalizer", {{"type", "Sequence"}}), "needs a list");
  ExpectParseError(with("normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "("}}}}),
                   "regular expression \"(\"");
  ExpectParseError(with("normalizer", {{"type", "Replace"}, {"pattern", 5}}), "\"pattern\" must be");
  ExpectParseError(with("pre_tokenizer", {{"type", "Split"}, {"pattern", "x"}, {"behavior", "Odd"}}),
                   "behavior \"Odd\"");
  ExpectParseError(with("pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}}), "one character");
  ExpectParseError(with("post_processor", {{"type", "TemplateProcessing"}}), "needs a list");
  ExpectParseError(with("post_processor",
                        {{"type", "TemplateProcessing"}, {"single", Json::array({{{"SpecialToken", {{"id", "x"}}}}})}}),
                   "has no ids");
  ExpectParseError(with("decoder", {{"type", "Strip"}, {"content", ""}}), "one character");
}

TEST(Tokenizer, LoadNamesWhatIsMissing) {
  ScratchFolder folder;
  EXPECT_EQ(Tokenizer::Load(folder.path()).status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(WriteFileAtomic(folder.File("tokenizer.model"), "x").ok());
  EXPECT_EQ(Tokenizer::Load(folder.path()).status().code(), StatusCode::kUnimplemented);
  ASSERT_TRUE(WriteFileAtomic(folder.File("tokenizer.json"), ByteLevelJson().dump()).ok());
  EXPECT_TRUE(Tokenizer::Load(folder.path()).ok());
  EXPECT_TRUE(Tokenizer::Load(folder.File("tokenizer.json")).ok());
  ASSERT_TRUE(WriteFileAtomic(folder.File("tokenizer_config.json"), "{").ok());
  const Status status = Tokenizer::Load(folder.path()).status();
  EXPECT_NE(status.message().find("tokenizer_config.json: not valid JSON"), std::string::npos) << status.ToString();
}

}  // namespace
}  // namespace quern
