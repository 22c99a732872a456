#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "model/chat_template/dialogue.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

using Json = nlohmann::ordered_json;

// Byte-level characters and four special tokens; the post-processor puts <s> first.
std::shared_ptr<const Tokenizer> SmallTokenizer() {
  Json vocab = Json::object();
  int id = 0;
  for (const char* special : {"<s>", "</s>", "<|user|>", "<|bot|>"}) vocab[special] = id++;
  for (char c = '!'; c <= '~'; ++c) vocab[std::string(1, c)] = id++;
  vocab["Ġ"] = id++;
  vocab["Ċ"] = id++;
  vocab["ok"] = id++;
  Json added = Json::array();
  for (int i = 0; i < 4; ++i)
    added.push_back(
        {{"id", i},
         {"content", std::vector<std::string>{"<s>", "</s>", "<|user|>", "<|bot|>"}[static_cast<size_t>(i)]},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}});
  const Json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single",
         {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
        {"pair", {{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}}},
        {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {0}}, {"tokens", {"<s>"}}}}}}}},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"vocab", vocab},
        {"merges", {"o k"}}}}};
  const auto parsed =
      Tokenizer::Parse(tokenizer.dump(), R"({"bos_token": "<s>", "eos_token": "</s>"})", "tokenizer.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status().ToString();
  return *parsed;
}

constexpr const char* kTemplate =
    "{{ bos_token }}{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}{{ m.content | trim }}"
    "{{ eos_token if m.role == 'assistant' }}\n{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}";

class EncodeChatTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto parsed = ChatTemplate::Parse(kTemplate, "template", {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
    ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
    template_ = *parsed;
  }
  std::string Pieces(const std::vector<int32_t>& ids) const {
    std::string out;
    for (const int32_t id : ids) out += std::string(tokenizer_->TokenText(id)) + " ";
    return out;
  }

  std::shared_ptr<const Tokenizer> tokenizer_ = SmallTokenizer();
  std::shared_ptr<const ChatTemplate> template_;
};

TEST_F(EncodeChatTest, OneBosAndSpecialTokensFromTheText) {
  const std::vector<ChatMessage> messages = {{"user", " ok? "}};
  const auto ids = EncodeChat(*tokenizer_, template_.get(), messages, true);
  ASSERT_TRUE(ids.ok()) << ids.status().ToString();
  EXPECT_EQ(Pieces(*ids), "<s> <|user|> ok ? Ċ <|bot|> ");
}

TEST_F(EncodeChatTest, WithoutTemplateContentsFollowOneAnother) {
  const std::vector<ChatMessage> messages = {{"user", "a"}, {"assistant", "b"}, {"user", "c"}};
  const auto ids = EncodeChat(*tokenizer_, nullptr, messages, true);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(Pieces(*ids), "<s> a b </s> c ");
  const auto next =
      EncodeNextTurn(*tokenizer_, nullptr, messages, 2, std::vector<int32_t>(ids->begin(), ids->begin() + 3), true);
  ASSERT_TRUE(next.ok());
  EXPECT_EQ(Pieces(*next), "</s> c ");
}

// The model wrote "o" "k", two tokens that the tokenizer would make one of: they stay.
TEST_F(EncodeChatTest, SampledIdsStayTheRecord) {
  std::vector<ChatMessage> messages = {{"user", "a"}};
  std::vector<int32_t> record = *EncodeChat(*tokenizer_, template_.get(), messages, true);
  const size_t prompt = record.size();
  for (const char* piece : {"Ġ", "o", "k", "</s>"}) record.push_back(*tokenizer_->TokenId(piece));
  messages.push_back({"assistant", tokenizer_->Decode(std::span(record).subspan(prompt), true)});
  EXPECT_EQ(messages[1].content, " ok");
  messages.push_back({"user", "more"});
  const auto next = EncodeNextTurn(*tokenizer_, template_.get(), messages, 2, record, true);
  ASSERT_TRUE(next.ok()) << next.status().ToString();
  // The sampled </s> is not repeated, the trimmed blank of the turn is in the record as the model wrote it.
  EXPECT_EQ(Pieces(*next), "Ċ <|user|> m o r e Ċ <|bot|> ");
  record.pop_back();  // ended by length: the template closes the turn
  EXPECT_EQ(Pieces(*EncodeNextTurn(*tokenizer_, template_.get(), messages, 2, record, true)),
            "</s> Ċ <|user|> m o r e Ċ <|bot|> ");
}

// Where the model's text comes back from the tokenizer as it was, the record is what a fresh rendering gives.
TEST_F(EncodeChatTest, RecordAgreesWithFreshRendering) {
  std::vector<ChatMessage> messages = {{"user", "QuernTurn?"}};
  std::vector<int32_t> record = *EncodeChat(*tokenizer_, template_.get(), messages, true);
  for (int turn = 0; turn < 5; ++turn) {
    const std::string said = "ok" + std::to_string(turn) + "QuernTurn";
    for (const int32_t id : tokenizer_->Encode(said, false)) record.push_back(id);
    record.push_back(*tokenizer_->eos_id());
    messages.push_back({"assistant", said});
    const size_t known = messages.size();
    messages.push_back({"user", "and " + std::to_string(turn)});
    const auto next = EncodeNextTurn(*tokenizer_, template_.get(), messages, known, record, true);
    ASSERT_TRUE(next.ok()) << next.status().ToString();
    record.insert(record.end(), next->begin(), next->end());
    EXPECT_EQ(record, *EncodeChat(*tokenizer_, template_.get(), messages, true));
  }
}

TEST_F(EncodeChatTest, TemplateThatHidesTheTurnIsAnError) {
  const auto hides = ChatTemplate::Parse("{{ messages|length }}", "template", nullptr);
  ASSERT_TRUE(hides.ok());
  const std::vector<ChatMessage> messages = {{"assistant", "a"}, {"user", "b"}};
  const auto next = EncodeNextTurn(*tokenizer_, hides->get(), messages, 1, {}, true);
  ASSERT_FALSE(next.ok());
  EXPECT_EQ(next.status().code(), StatusCode::kFailedPrecondition);
}

// Opening, utterances and what comes between them are what the template prints for the whole conversation.
void ExpectPiecesAreTheConversation(const Dialogue& dialogue, const Tokenizer& tokenizer,
                                    const ChatTemplate& chat_template) {
  std::vector<ChatMessage> messages = {{"user", "one"}};
  std::vector<int32_t> record = *dialogue.Opening("one");
  for (const char* said : {"ok", "fine"}) {
    const std::vector<int32_t> utterance = dialogue.Utterance(said, false);
    EXPECT_NE(std::find(dialogue.end_ids().begin(), dialogue.end_ids().end(), utterance.back()),
              dialogue.end_ids().end());
    record.insert(record.end(), utterance.begin(), utterance.end());
    messages.push_back({"assistant", said});
    messages.push_back({"user", "more"});
    const auto next = dialogue.Next(messages, messages.size() - 1, record);
    ASSERT_TRUE(next.ok()) << next.status().ToString();
    record.insert(record.end(), next->begin(), next->end());
    EXPECT_EQ(record, *EncodeChat(tokenizer, &chat_template, messages, true));
  }
}

TEST_F(EncodeChatTest, ADialogueIsWhatTheTemplatePrints) {
  const auto dialogue = Dialogue::Make(*tokenizer_, template_, {});
  ASSERT_TRUE(dialogue.ok()) << dialogue.status().ToString();
  EXPECT_EQ(Pieces(dialogue->end_ids()), "</s> ");
  ExpectPiecesAreTheConversation(*dialogue, *tokenizer_, *template_);
}

TEST_F(EncodeChatTest, ADialogueWithoutTemplateIsTheTexts) {
  const Dialogue dialogue = *Dialogue::Make(*tokenizer_, nullptr, {1});
  const std::vector<ChatMessage> messages = {{"user", "a"}, {"assistant", "b!"}, {"user", "c"}, {"user", "d"}};
  EXPECT_EQ(Pieces(*dialogue.Opening("a")), "<s> a ");
  EXPECT_EQ(Pieces(dialogue.Utterance("b", false)), "b </s> ");
  EXPECT_EQ(Pieces(dialogue.Utterance("b!", true)), "b ! ");
  EXPECT_EQ(Pieces(*dialogue.Next(messages, 2, {})), "c d ");
}

TEST(EncodeChatQwen3, ADialogueIsWhatTheTemplatePrints) {
  QUERN_NEED_SHARED_DATA("tokenizers/qwen3/tokenizer.json");
  const auto tokenizer = *Tokenizer::Load(SharedData("tokenizers/qwen3"));
  const auto chat_template = *ChatTemplate::Load(SharedData("tokenizers/qwen3"));
  const auto dialogue = Dialogue::Make(*tokenizer, chat_template, {*tokenizer->TokenId("<|endoftext|>")});
  ASSERT_TRUE(dialogue.ok()) << dialogue.status().ToString();
  EXPECT_EQ(dialogue->end_ids().back(), *tokenizer->TokenId("<|im_end|>"));
  ExpectPiecesAreTheConversation(*dialogue, *tokenizer, *chat_template);
}

TEST(EncodeChatQwen3, RealTemplateAndTokenizer) {
  QUERN_NEED_SHARED_DATA("tokenizers/qwen3/tokenizer.json");
  const auto tokenizer = Tokenizer::Load(SharedData("tokenizers/qwen3"));
  const auto chat_template = ChatTemplate::Load(SharedData("tokenizers/qwen3"));
  ASSERT_TRUE(tokenizer.ok() && chat_template.ok()) << chat_template.status().ToString();
  std::vector<ChatMessage> messages = {{"system", "Be brief."}, {"user", "2+2?"}};
  std::vector<int32_t> record = *EncodeChat(**tokenizer, chat_template->get(), messages, true);
  EXPECT_EQ((*tokenizer)->Decode(record, false),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(record[0], *(*tokenizer)->TokenId("<|im_start|>"));
  for (const int32_t id : (*tokenizer)->Encode("<think>\nsum\n</think>\n\n4<|im_end|>", false)) record.push_back(id);
  messages.push_back({"assistant", "<think>\nsum\n</think>\n\n4"});
  messages.push_back({"user", "Sure?"});
  const auto next = EncodeNextTurn(**tokenizer, chat_template->get(), messages, 3, record, true);
  ASSERT_TRUE(next.ok()) << next.status().ToString();
  EXPECT_EQ((*tokenizer)->Decode(*next, false), "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n");
}

}  // namespace
}  // namespace quern
