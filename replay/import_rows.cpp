#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "replay/import.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

// A row that is wrong; caught in ParseRow, as are nlohmann's own exceptions.
struct RowError {
  std::string reason;
};
[[noreturn]] void Fail(std::string reason) { throw RowError{std::move(reason)}; }

const Json& Require(const Json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end()) Fail(StrCat("'", key, "' is missing"));
  return *found;
}

const Json* Find(const Json& row, const char* key) {
  const auto found = row.find(key);
  return found == row.end() || found->is_null() ? nullptr : &*found;
}

std::string AsText(const Json& value, const std::string& what) {
  if (!value.is_string()) Fail(StrCat("'", what, "' is not a string"));
  return value.get<std::string>();
}

bool AsBool(const Json& value, const std::string& what) {
  if (!value.is_boolean()) Fail(StrCat("'", what, "' is neither true nor false"));
  return value.get<bool>();
}

double AsNumber(const Json& value, const std::string& what) {
  if (!value.is_number()) Fail(StrCat("'", what, "' is not a number"));
  return value.get<double>();
}

float AsFloat(const Json& value, const std::string& what) {
  const double number = AsNumber(value, what);
  if (!std::isfinite(number) || std::abs(number) > std::numeric_limits<float>::max())
    Fail(StrCat("'", what, "' is out of range"));
  return static_cast<float>(number);
}

template <typename T>
T AsInteger(const Json& value, const std::string& what) {
  bool fits = value.is_number_integer();
  if (fits && value.is_number_unsigned())
    fits = value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<T>::max());
  else if (fits)
    fits = value.get<int64_t>() >= 0 || (std::numeric_limits<T>::is_signed &&
                                         value.get<int64_t>() >= static_cast<int64_t>(std::numeric_limits<T>::min()));
  if (!fits) Fail(StrCat("'", what, "' is not an integer in range"));
  return value.get<T>();
}

const Json& AsArray(const Json& value, const std::string& what) {
  if (!value.is_array()) Fail(StrCat("'", what, "' is not a list"));
  return value;
}

const Json& AsObject(const Json& value, const std::string& what) {
  if (!value.is_object()) Fail(StrCat("'", what, "' is not an object"));
  return value;
}

// What of a row has been understood; the rest becomes extra_json.
class Row {
 public:
  explicit Row(const Json& json) : json_(json) {}
  const Json& json() const { return json_; }
  const Json& Need(const char* key) {
    used_.push_back(key);
    return Require(json_, key);
  }
  const Json* Take(const char* key) {
    used_.push_back(key);
    return Find(json_, key);
  }
  std::string Rest() const {
    Json rest = Json::object();
    for (const auto& [key, value] : json_.items())
      if (std::find(used_.begin(), used_.end(), key) == used_.end()) rest[key] = value;
    return rest.empty() ? std::string() : rest.dump();
  }

 private:
  const Json& json_;
  std::vector<std::string> used_;
};

v1::Verdict AsVerdict(const Json& value) {
  const Result<v1::Verdict> verdict = ParseVerdict(AsText(value, "verdict"));
  if (!verdict.ok()) Fail(StrCat("'verdict': ", verdict.status().message()));
  return *verdict;
}

void AddMessage(v1::Trajectory* t, const std::string& role, std::string content) {
  v1::Message* message = t->add_messages();
  message->set_role(role);
  message->set_content(std::move(content));
}

void AddMessages(v1::Trajectory* t, const Json& list, const std::string& what) {
  for (size_t i = 0; i < AsArray(list, what).size(); ++i) {
    const std::string name = StrCat(what, "[", i, "]");
    const Json& message = AsObject(list[i], name);
    AddMessage(t, AsText(Require(message, "role"), name + ".role"),
               AsText(Require(message, "content"), name + ".content"));
  }
}

void AddReward(v1::Trajectory* t, float reward) {
  t->add_turns()->set_reward(reward);
  t->set_episode_return(t->episode_return() + reward);
}

int AssistantMessages(const v1::Trajectory& t) {
  return static_cast<int>(std::count_if(t.messages().begin(), t.messages().end(),
                                        [](const v1::Message& message) { return message.role() == "assistant"; }));
}

// Columns every outside format may have.
void ReadCommon(Row& row, v1::Trajectory* t, bool done_by_default) {
  if (const Json* uid = row.Take("uid")) t->set_uid(AsText(*uid, "uid"));
  if (const Json* run = row.Take("run")) t->set_run(AsText(*run, "run"));
  if (const Json* task = row.Take("task")) t->set_task(AsText(*task, "task"));
  if (const Json* success = row.Take("success")) t->set_success(AsBool(*success, "success"));
  const Json* done = row.Take("done");
  t->set_done(done != nullptr ? AsBool(*done, "done") : done_by_default);
  if (const Json* tags = row.Take("tags"))
    for (const Json& tag : AsArray(*tags, "tags")) t->add_tags(AsText(tag, "tags"));
}

void ReadMessages(Row& row, v1::Trajectory* t) {
  AddMessages(t, row.Need("messages"), "messages");
  const int assistant = AssistantMessages(*t);
  if (assistant == 0) Fail("no assistant message");
  const Json& rewards = AsArray(row.Need("rewards"), "rewards");
  if (static_cast<int>(rewards.size()) != assistant)
    Fail(StrCat(rewards.size(), " rewards for ", assistant, " assistant messages"));
  for (const Json& reward : rewards) AddReward(t, AsFloat(reward, "rewards"));
  ReadCommon(row, t, true);
  // What a model wrote stays known as such, also on the way through such a file. Other values are somebody's own
  // column.
  const Json* source = Find(row.json(), "source");
  if (source == nullptr || *source != "generated") return;
  row.Take("source");
  t->set_source(v1::SOURCE_GENERATED);
  if (const Json* depth = row.Take("generation_depth"))
    t->set_generation_depth(AsInteger<uint32_t>(*depth, "generation_depth"));
  if (const Json* verdict = row.Take("verdict")) t->set_verdict(AsVerdict(*verdict));
}

void ReadPromptCompletion(Row& row, v1::Trajectory* t) {
  const Json& prompt = row.Need("prompt");
  const Json& completion = row.Need("completion");
  if (prompt.is_array())
    AddMessages(t, prompt, "prompt");
  else
    AddMessage(t, "user", AsText(prompt, "prompt"));
  if (completion.is_array())
    AddMessages(t, completion, "completion");
  else
    AddMessage(t, "assistant", AsText(completion, "completion"));
  const int assistant = AssistantMessages(*t);
  if (assistant == 0) Fail("no assistant message in 'completion'");
  // One reward for the whole: it is paid for the last utterance.
  const float reward = AsFloat(row.Need("reward"), "reward");
  for (int i = 0; i < assistant; ++i) AddReward(t, i + 1 == assistant ? reward : 0.0f);
  ReadCommon(row, t, true);
}

// [[text, is_action], ...] with one reward per item, zero for items that are no actions.
void ReadLmrlSequence(Row& row, v1::Trajectory* t) {
  const Json& sequence = AsArray(row.Need("sequence"), "sequence");
  const Json* rewards = row.Take("reward");
  if (rewards == nullptr) rewards = row.Take("rewards");
  if (rewards == nullptr) Fail("'reward' is missing");
  if (AsArray(*rewards, "reward").size() != sequence.size())
    Fail(StrCat(rewards->size(), " rewards for ", sequence.size(), " items of 'sequence'"));
  for (size_t i = 0; i < sequence.size(); ++i) {
    const Json& item = sequence[i];
    const std::string name = StrCat("sequence[", i, "]");
    if (!item.is_array() || item.size() != 2) Fail(name + " is not [text, is_action]");
    const bool action = item[1].is_boolean() ? item[1].get<bool>() : AsNumber(item[1], name) != 0;
    const float reward = AsFloat((*rewards)[i], "reward");
    AddMessage(t, action ? "assistant" : "user", AsText(item[0], name));
    if (action)
      AddReward(t, reward);
    else if (reward != 0)
      Fail(StrCat("reward[", i, "] is ", reward, " for an item that is no action"));
  }
  if (t->turns_size() == 0) Fail("no action in 'sequence'");
  ReadCommon(row, t, true);
}

// Twenty-questions dialogues: each entry is "question? answer". -1 for each question, 0 for the one that solves it.
void ReadLmrlConversation(Row& row, v1::Trajectory* t) {
  const Json& lines = AsArray(row.Need("conversation"), "conversation");
  if (lines.empty()) Fail("'conversation' is empty");
  if (row.Take("done") == nullptr) Fail("'done' is missing");
  ReadCommon(row, t, true);
  t->set_success(t->done());
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string line = AsText(lines[i], StrCat("conversation[", i, "]"));
    size_t mark = line.rfind("? ");
    if (mark == std::string::npos) mark = line.rfind('?');
    if (mark == std::string::npos) Fail(StrCat("conversation[", i, "] has no question mark"));
    AddMessage(t, "assistant", line.substr(0, mark + 1));
    const size_t answer = line.find_first_not_of(' ', mark + 1);
    AddMessage(t, "user", answer == std::string::npos ? "" : line.substr(answer));
    AddReward(t, t->done() && i + 1 == lines.size() ? 0.0f : -1.0f);
  }
  // Asked up to the limit or solved: the episode is over either way.
  t->set_done(true);
  if (const Json* word = row.Take("word")) {
    const Json& value = word->is_array() && !word->empty() ? (*word)[0] : *word;
    if (t->task().empty()) t->set_task(AsText(value, "word"));
  }
}

void ReadCompression(const Json& json, v1::Compression* compression) {
  for (const auto& [key, value] : AsObject(json, "compression").items()) {
    if (key == "budgets")
      for (const Json& budget : AsArray(value, key)) compression->add_budgets(AsInteger<uint32_t>(budget, key));
    if (key == "key_channels") compression->set_key_channels(AsInteger<uint32_t>(value, key));
    if (key == "query_window") compression->set_query_window(AsInteger<uint32_t>(value, key));
    if (key == "recent") compression->set_recent(AsInteger<uint32_t>(value, key));
  }
}

void ReadSampling(const Json& json, v1::SamplingParams* sampling) {
  for (const auto& [key, value] : AsObject(json, "sampling").items()) {
    if (key == "temperature") sampling->set_temperature(AsFloat(value, key));
    if (key == "top_k") sampling->set_top_k(AsInteger<uint32_t>(value, key));
    if (key == "top_p") sampling->set_top_p(AsFloat(value, key));
    if (key == "min_p") sampling->set_min_p(AsFloat(value, key));
    if (key == "repetition_penalty") sampling->set_repetition_penalty(AsFloat(value, key));
    if (key == "seed") sampling->set_seed(AsInteger<uint64_t>(value, key));
    if (key == "q_sft_beta") sampling->set_q_sft_beta(AsFloat(value, key));
    if (key == "rule") sampling->set_rule(AsText(value, key));
    if (key == "compression") ReadCompression(value, sampling->mutable_compression());
  }
}

template <typename T>
void AppendBytes(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void ReadInt32s(const Json* list, const char* what, std::string* out) {
  if (list == nullptr) return;
  for (const Json& value : AsArray(*list, what)) AppendBytes(out, AsInteger<int32_t>(value, what));
}

// null is NaN.
void ReadFloats(const Json* list, const char* what, std::string* out) {
  if (list == nullptr) return;
  for (const Json& value : AsArray(*list, what))
    AppendBytes(out, value.is_null() ? std::numeric_limits<float>::quiet_NaN() : AsFloat(value, what));
}

void ReadQuernTokens(Row& row, v1::Trajectory* t) {
  ReadInt32s(row.Take("token_ids"), "token_ids", t->mutable_token_ids());
  if (const Json* mask = row.Take("loss_mask"))
    for (const Json& bit : AsArray(*mask, "loss_mask"))
      AppendBytes(t->mutable_loss_mask(), static_cast<uint8_t>(AsInteger<int8_t>(bit, "loss_mask")));
  ReadFloats(row.Take("log_probs"), "log_probs", t->mutable_log_probs());
}

void ReadChain(const Json& json, v1::Chain* chain) {
  AsObject(json, "chain");
  const auto text = [&](const char* key) {
    const Json* value = Find(json, key);
    return value == nullptr ? std::string() : AsText(*value, StrCat("chain.", key));
  };
  chain->set_question(text("question"));
  chain->set_answer(text("answer"));
  chain->set_extracted(text("extracted"));
  if (const Json* guideline = Find(json, "guideline"))
    chain->set_guideline(AsInteger<uint32_t>(*guideline, "chain.guideline"));
  chain->set_guideline_text(text("guideline_text"));
  if (const Json* hinted = Find(json, "hinted")) chain->set_hinted(AsBool(*hinted, "chain.hinted"));
  chain->set_rejected(text("rejected"));
  const Json* stages = Find(json, "stages");
  if (stages == nullptr) return;
  for (const Json& stage : AsArray(*stages, "chain.stages")) {
    v1::ChainStage* out = chain->add_stages();
    AsObject(stage, "chain.stages");
    if (const Json* name = Find(stage, "name")) out->set_name(AsText(*name, "chain.stages.name"));
    if (const Json* said = Find(stage, "text")) out->set_text(AsText(*said, "chain.stages.text"));
    ReadInt32s(Find(stage, "prompt_token_ids"), "chain.stages.prompt_token_ids", out->mutable_prompt_token_ids());
    ReadInt32s(Find(stage, "token_ids"), "chain.stages.token_ids", out->mutable_token_ids());
    ReadFloats(Find(stage, "log_probs"), "chain.stages.log_probs", out->mutable_log_probs());
    if (const Json* sampling = Find(stage, "sampling")) ReadSampling(*sampling, out->mutable_sampling());
  }
}

void ReadQuern(Row& row, v1::Trajectory* t) {
  ReadCommon(row, t, false);
  if (const Json* messages = row.Take("messages")) AddMessages(t, *messages, "messages");
  ReadQuernTokens(row, t);
  double sum = 0;
  for (const Json& turn : AsArray(row.Need("turns"), "turns")) {
    v1::Turn* out = t->add_turns();
    AsObject(turn, "turns");
    if (const Json* begin = Find(turn, "begin")) out->set_begin(AsInteger<uint32_t>(*begin, "turns.begin"));
    if (const Json* end = Find(turn, "end")) out->set_end(AsInteger<uint32_t>(*end, "turns.end"));
    if (const Json* policy = Find(turn, "policy")) out->set_policy(AsInteger<uint32_t>(*policy, "turns.policy"));
    out->set_reward(AsFloat(Require(turn, "reward"), "turns.reward"));
    sum += out->reward();
  }
  row.Take("rewards");  // the turns' own, for readers
  const Json* episode_return = row.Take("episode_return");
  t->set_episode_return(episode_return != nullptr ? AsNumber(*episode_return, "episode_return") : sum);
  if (const Json* difference = row.Take("log_prob_difference"))
    t->set_log_prob_difference(AsFloat(*difference, "log_prob_difference"));
  if (const Json* source = row.Take("source")) {
    const std::string name = AsText(*source, "source");
    if (name != "real" && name != "generated") Fail("'source' is neither real nor generated");
    t->set_source(name == "real" ? v1::SOURCE_REAL : v1::SOURCE_GENERATED);
  }
  if (const Json* depth = row.Take("generation_depth"))
    t->set_generation_depth(AsInteger<uint32_t>(*depth, "generation_depth"));
  if (const Json* policies = row.Take("policies"))
    for (const Json& policy : AsArray(*policies, "policies")) {
      v1::PolicyVersion* out = t->add_policies();
      AsObject(policy, "policies");
      if (const Json* name = Find(policy, "name")) out->set_name(AsText(*name, "policies.name"));
      if (const Json* version = Find(policy, "version"))
        out->set_version(AsInteger<uint64_t>(*version, "policies.version"));
      if (const Json* hash = Find(policy, "content_hash"))
        out->set_content_hash(AsText(*hash, "policies.content_hash"));
    }
  if (const Json* sampling = row.Take("sampling")) ReadSampling(*sampling, t->mutable_sampling());
  if (const Json* seed = row.Take("episode_seed")) t->set_episode_seed(AsInteger<uint64_t>(*seed, "episode_seed"));
  if (const Json* created = row.Take("created_unix_ms"))
    t->set_created_unix_ms(AsInteger<int64_t>(*created, "created_unix_ms"));
  if (const Json* verdict = row.Take("verdict")) t->set_verdict(AsVerdict(*verdict));
  if (const Json* chain = row.Take("chain")) ReadChain(*chain, t->mutable_chain());
}

ImportFormat Detect(const Json& row) {
  if (row.contains("turns") && (row.contains("messages") || row.contains("token_ids"))) return ImportFormat::kQuern;
  if (row.contains("messages")) return ImportFormat::kMessages;
  if (row.contains("prompt") || row.contains("completion")) return ImportFormat::kPromptCompletion;
  if (row.contains("sequence") || row.contains("conversation")) return ImportFormat::kLmrl;
  Fail(
      "none of the known formats: expected 'messages' and 'rewards', or 'prompt', 'completion' and 'reward', or "
      "'sequence' and 'reward', or a file of questions");
}

// Writing JSON recurses: a row of a million brackets must not get that far.
void CheckDepth(std::string_view line) {
  constexpr int kMaxDepth = 100;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) Fail(StrCat("nested more than ", kMaxDepth, " deep"));
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
}

// Independent of where the row goes (run, tags) and of who vouches for it (source).
std::string ContentUid(v1::Trajectory content) {
  content.clear_run();
  content.clear_tags();
  content.clear_source();
  const std::string bytes = content.SerializeAsString();
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return StrFormat("row-%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                   static_cast<unsigned long long>(hash.low64));
}

v1::Trajectory ReadJsonRow(const Json& json, ImportFormat format) {
  if (!json.is_object()) Fail("not a JSON object");
  Row row(json);
  v1::Trajectory t;
  if (format == ImportFormat::kAuto) format = Detect(json);
  if (format == ImportFormat::kQuern) ReadQuern(row, &t);
  if (format == ImportFormat::kMessages) ReadMessages(row, &t);
  if (format == ImportFormat::kPromptCompletion) ReadPromptCompletion(row, &t);
  if (format == ImportFormat::kLmrl)
    json.contains("conversation") ? ReadLmrlConversation(row, &t) : ReadLmrlSequence(row, &t);
  const Json* extra = format == ImportFormat::kQuern ? row.Take("extra_json") : nullptr;
  t.set_extra_json(extra != nullptr ? AsText(*extra, "extra_json") : row.Rest());
  return t;
}

v1::Trajectory ReadQuestion(std::string_view record, QuestionFormat format) {
  const Result<FileQuestion> question = ParseQuestion(format, record);
  if (!question.ok()) Fail(question.status().message());
  v1::Trajectory t;
  AddMessage(&t, "user", question->text);
  AddMessage(&t, "assistant", question->solution);
  AddReward(&t, 1);
  t.set_done(true);
  t.set_success(true);
  t.set_task(question->id);
  const Json extra = {{"format", QuestionFormatName(format)}, {"answer", question->answer}};
  t.set_extra_json(extra.dump());
  return t;
}

void Finish(const ImportOptions& options, v1::Trajectory* t) {
  if (t->source() == v1::SOURCE_UNSPECIFIED) t->set_source(v1::SOURCE_REAL);
  if (options.source) t->set_source(*options.source);
  if (t->source() == v1::SOURCE_REAL && options.source) t->set_generation_depth(0);
  if (t->source() == v1::SOURCE_GENERATED && t->generation_depth() == 0) t->set_generation_depth(1);
  if (t->run().empty()) t->set_run(options.run);
  for (const std::string& tag : options.tags)
    if (std::find(t->tags().begin(), t->tags().end(), tag) == t->tags().end()) t->add_tags(tag);
  if (t->uid().empty()) t->set_uid(ContentUid(*t));
}

}  // namespace

Result<v1::Trajectory> ParseRow(std::string_view line, const ImportOptions& options) {
  try {
    const std::optional<QuestionFormat> questions = QuestionFormatOf(options.format);
    v1::Trajectory t;
    if (questions) {
      t = ReadQuestion(line, *questions);
    } else {
      CheckDepth(line);
      t = ReadJsonRow(Json::parse(line), options.format);
    }
    Finish(options, &t);
    return t;
  } catch (const RowError& error) {
    return InvalidArgument(error.reason);
  } catch (const Json::parse_error& error) {
    return InvalidArgument(StrCat("not JSON: stopped at byte ", error.byte));
  } catch (const std::exception& error) {  // others of nlohmann: a string that is not UTF-8, ...
    return InvalidArgument(StrCat("not a usable row: ", error.what()));
  }
}

}  // namespace quern
