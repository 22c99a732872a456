#include "service/openai.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "base/strings.h"
#include "service/jsonl.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 64;
constexpr int64_t kMaxChoices = 128;  // of all prompts of a request together
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr int64_t kMaxTopLogProbs = 20;

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Reads members of a request; the first one that is wrong is kept.
class Members {
 public:
  explicit Members(const Json& object) : object_(object) {}

  // Null counts as left out.
  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  double Number(const char* key, double fallback, double least, double most) {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    const double number = value->is_number() ? value->get<double>() : std::nan("");
    if (number >= least && number <= most) return number;
    Refuse(StrCat("\"", key, "\" must be a number between ", least, " and ", most));
    return fallback;
  }
  int64_t Integer(const char* key, int64_t fallback, int64_t least, int64_t most) {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    // An unsigned number that no int64_t holds would come out negative.
    const bool held =
        value->is_number_integer() && !(value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{INT64_MAX});
    const int64_t number = held ? value->get<int64_t>() : 0;
    if (held && number >= least && number <= most) return number;
    Refuse(StrCat("\"", key, "\" must be a whole number between ", least, " and ", most));
    return fallback;
  }
  bool Flag(const char* key, bool fallback) {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    if (value->is_boolean()) return value->get<bool>();
    Refuse(StrCat("\"", key, "\" must be true or false"));
    return fallback;
  }
  void Refuse(std::string why) {
    if (status_.ok()) status_ = InvalidArgument(std::move(why));
  }
  // Members that would change the answer and are not there: anything but what changes nothing is refused.
  void RefuseUnlessNeutral(const char* key, std::initializer_list<Json> neutral) {
    const Json* value = Find(key);
    if (value == nullptr || ((value->is_object() || value->is_array()) && value->empty())) return;
    for (const Json& harmless : neutral)
      if (*value == harmless) return;
    Refuse(StrCat("\"", key, "\" is not supported"));
  }
  const Status& status() const { return status_; }

 private:
  const Json& object_;
  Status status_;
};

Result<std::vector<int32_t>> Ids(const Json& list, int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocabulary)
      return InvalidArgument(StrCat("token ids must be whole numbers below the vocabulary's ", vocabulary));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

Status ReadPrompts(const Json& prompt, bool special, const ApiModel& model, ApiRequest& request) {
  const ServedPolicy& served = model.served;
  const auto add = [&](const Json& one) -> Status {
    if (one.is_string()) {
      if (served.tokenizer == nullptr) return InvalidArgument("the model has no tokenizer: give token ids");
      request.prompts.push_back(served.tokenizer->Encode(one.get<std::string>(), special));
    } else if (one.is_array()) {
      QUERN_ASSIGN_OR_RETURN(auto ids, Ids(one, model.vocab_size));
      request.prompts.push_back(std::move(ids));
    } else {
      return InvalidArgument("\"prompt\" must be a text, token ids, or a list of them");
    }
    return {};
  };
  if (!prompt.is_array() || prompt.empty() || prompt[0].is_number()) return add(prompt);
  if (prompt.size() > kMaxChoices) return InvalidArgument(StrCat("more than ", kMaxChoices, " prompts"));
  for (const Json& one : prompt) QUERN_RETURN_IF_ERROR(add(one));
  return {};
}

// Contents that are lists of texts become one text: few templates know lists.
Status FlattenContents(Json& messages) {
  for (Json& message : messages) {
    if (!message.is_object() || !message.contains("role")) return InvalidArgument("a message needs a \"role\"");
    Json& content = message["content"];
    if (!content.is_array()) continue;
    std::string text;
    for (const Json& part : content) {
      if (!part.is_object() || part.value("type", Json()) != "text" || !part.value("text", Json()).is_string())
        return InvalidArgument("only parts of type \"text\" are supported in a message");
      text += part["text"].get<std::string>();
    }
    content = std::move(text);
  }
  return {};
}

Status ReadMessages(const Members& members, const ServedPolicy& served, ApiRequest& request) {
  if (served.chat_template == nullptr || served.tokenizer == nullptr)
    return InvalidArgument("the model has no chat template: use /v1/completions");
  const Json* given = members.Find("messages");
  if (given == nullptr || !given->is_array() || given->empty())
    return InvalidArgument("\"messages\" must be a list with at least one message");
  Json messages = *given;
  QUERN_RETURN_IF_ERROR(FlattenContents(messages));
  const Json* tools = members.Find("tools");
  if (tools != nullptr && !tools->is_array()) return InvalidArgument("\"tools\" must be a list");
  const Json* extra = members.Find("chat_template_kwargs");
  if (extra != nullptr && !extra->is_object()) return InvalidArgument("\"chat_template_kwargs\" must be an object");
  QUERN_ASSIGN_OR_RETURN(
      const std::string text,
      served.chat_template->Render(messages, tools == nullptr ? Json() : *tools, extra == nullptr ? Json() : *extra,
                                   {.add_generation_prompt = true}));
  request.prompts.push_back(served.tokenizer->Encode(text, false));
  return {};
}

Status ReadStops(Members& members, const ApiModel& model, ApiRequest& request) {
  const ServedPolicy& served = model.served;
  if (const Json* stop = members.Find("stop"); stop != nullptr) {
    const Json list = stop->is_array() ? *stop : Json::array({*stop});
    if (list.size() > kMaxStops) return InvalidArgument(StrCat("more than ", kMaxStops, " stop texts"));
    for (const Json& text : list) {
      if (!text.is_string() || text.get_ref<const std::string&>().empty() ||
          text.get_ref<const std::string&>().size() > kMaxStopBytes)
        return InvalidArgument(
            StrCat("\"stop\" must be a text or a list of texts, of up to ", kMaxStopBytes, " bytes"));
      request.stop.push_back(text);
      // A special token has no text of its own in an answer.
      if (served.tokenizer == nullptr) continue;
      if (const auto id = served.tokenizer->TokenId(request.stop.back()); id && served.tokenizer->IsSpecial(*id))
        request.stop_ids.push_back(*id);
    }
  }
  if (const Json* ids = members.Find("stop_token_ids"); ids != nullptr) {
    QUERN_ASSIGN_OR_RETURN(const auto more, Ids(*ids, model.vocab_size));
    request.stop_ids.insert(request.stop_ids.end(), more.begin(), more.end());
  }
  if (!members.Flag("ignore_eos", false))
    request.stop_ids.insert(request.stop_ids.end(), served.end_ids.begin(), served.end_ids.end());
  return {};
}

void ReadLogProbs(Members& members, ApiRequest& request) {
  if (request.chat) {
    const auto top = static_cast<int32_t>(members.Integer("top_logprobs", 0, 0, kMaxTopLogProbs));
    if (members.Flag("logprobs", false)) request.log_probs = top;
  } else if (members.Find("logprobs") != nullptr) {
    request.log_probs = static_cast<int32_t>(members.Integer("logprobs", 0, 0, kMaxTopLogProbs));
  }
}

Status CheckLengths(const Members& members, const ApiModel& model, ApiRequest& request) {
  if (static_cast<int64_t>(request.prompts.size()) * request.n > kMaxChoices)
    return InvalidArgument(StrCat("more than ", kMaxChoices, " choices in one request"));
  size_t longest = 0;
  for (const std::vector<int32_t>& prompt : request.prompts) {
    if (prompt.empty()) return InvalidArgument("a prompt has no token");
    longest = std::max(longest, prompt.size());
  }
  const int64_t room = model.max_tokens - static_cast<int64_t>(longest);
  const bool asked = members.Find("max_tokens") != nullptr || members.Find("max_completion_tokens") != nullptr;
  if (room < 1 || (asked && request.max_tokens > room))
    return InvalidArgument(StrCat("a prompt of ", longest, " tokens",
                                  asked ? StrCat(" and ", request.max_tokens, " new ones") : "",
                                  " are more than this server's ", model.max_tokens));
  request.max_tokens = std::min(request.max_tokens, room);
  return {};
}

// The text of one token; what comes first in a text may be stripped, what comes second is not.
std::string TokenText(const Tokenizer* tokenizer, int32_t id) {
  if (tokenizer == nullptr) return {};
  const int32_t twice[] = {id, id};
  const std::string once = tokenizer->Decode({twice, 1}, false), both = tokenizer->Decode({twice, 2}, false);
  return both.starts_with(once) ? both.substr(once.size()) : once;
}

int64_t Characters(std::string_view text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return count;
}

const char* ReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength:
    case FinishReason::kContext: return "length";
    case FinishReason::kDeadline: return "timeout";
  }
  return "?";
}

Json Bytes(const std::string& text) {
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<int>(static_cast<unsigned char>(c)));
  return bytes;
}

Json ChatLogProbs(const Tokenizer* tokenizer, const ApiPart& part) {
  const auto entry = [&](int32_t id, float log_prob) {
    const std::string text = TokenText(tokenizer, id);
    return Json{{"token", text}, {"token_id", id}, {"logprob", NineDigits(log_prob)}, {"bytes", Bytes(text)}};
  };
  Json content = Json::array();
  for (size_t i = 0; i < part.tokens.size(); ++i) {
    Json token = entry(part.tokens[i], part.log_probs[i]);
    token["top_logprobs"] = Json::array();
    if (i < part.top.size())
      for (const TokenLogProb& top : part.top[i]) token["top_logprobs"].push_back(entry(top.id, top.log_prob));
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}};
}

Json TextLogProbs(const Tokenizer* tokenizer, const ApiPart& part) {
  Json tokens = Json::array(), log_probs = Json::array(), tops = Json::array(), offsets = Json::array();
  int64_t offset = part.text_offset;
  for (size_t i = 0; i < part.tokens.size(); ++i) {
    const std::string text = TokenText(tokenizer, part.tokens[i]);
    tokens.push_back(text);
    log_probs.push_back(NineDigits(part.log_probs[i]));
    offsets.push_back(offset);
    offset += Characters(text);
    Json top = Json::object();
    if (i < part.top.size())
      for (const TokenLogProb& entry : part.top[i]) top[TokenText(tokenizer, entry.id)] = NineDigits(entry.log_prob);
    tops.push_back(std::move(top));
  }
  return {{"tokens", tokens}, {"token_logprobs", log_probs}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

Json UsageJson(const ApiUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
}

}  // namespace

Result<ApiRequest> ParseApiRequest(bool chat, const std::string& body, const ApiModel& model) {
  bool deep = false;
  const Json json = Json::parse(
      body,
      [&](int depth, Json::parse_event_t, Json&) {
        deep = deep || depth > kMaxDepth;
        return depth <= kMaxDepth;
      },
      /*allow_exceptions=*/false);
  if (deep) return InvalidArgument(StrCat("the body is nested more than ", kMaxDepth, " deep"));
  if (!json.is_object()) return InvalidArgument("the body is not a JSON object");
  Members members(json);
  if (const Json* asked = members.Find("model"); asked != nullptr && *asked != model.name)
    return NotFound(StrCat("no model ", Dump(*asked), " here, only \"", model.name, "\""));
  members.RefuseUnlessNeutral("presence_penalty", {0});
  members.RefuseUnlessNeutral("frequency_penalty", {0});
  members.RefuseUnlessNeutral("logit_bias", {});
  members.RefuseUnlessNeutral("echo", {false});
  members.RefuseUnlessNeutral("suffix", {""});
  members.RefuseUnlessNeutral("response_format", {Json{{"type", "text"}}});
  members.RefuseUnlessNeutral("tool_choice", {"none", "auto"});
  members.RefuseUnlessNeutral("functions", {});

  ApiRequest request;
  request.chat = chat;
  request.n = members.Integer("n", 1, 1, kMaxChoices);
  members.RefuseUnlessNeutral("best_of", {request.n});
  request.max_tokens = members.Integer("max_tokens", chat ? INT32_MAX : 16, 1, INT32_MAX);
  if (chat) request.max_tokens = members.Integer("max_completion_tokens", request.max_tokens, 1, INT32_MAX);
  request.sampling.temperature = static_cast<float>(members.Number("temperature", 1, 0, 100));
  request.sampling.top_p = static_cast<float>(members.Number("top_p", 1, 0, 1));
  request.sampling.min_p = static_cast<float>(members.Number("min_p", 0, 0, 1));
  request.sampling.top_k = std::max(0, static_cast<int32_t>(members.Integer("top_k", 0, -1, INT32_MAX)));
  request.sampling.repetition_penalty = static_cast<float>(members.Number("repetition_penalty", 1, 0.01, 100));
  request.seed = members.Find("seed") != nullptr
                     ? static_cast<uint64_t>(members.Integer("seed", 0, INT64_MIN, INT64_MAX))
                     : std::random_device()();
  request.token_ids = members.Flag("return_token_ids", false);
  request.stream = members.Flag("stream", false);
  if (const Json* options = members.Find("stream_options"); options != nullptr && options->is_object())
    request.stream_usage = Members(*options).Flag("include_usage", false);
  ReadLogProbs(members, request);
  const bool special = members.Flag("add_special_tokens", true);
  QUERN_RETURN_IF_ERROR(ReadStops(members, model, request));
  QUERN_RETURN_IF_ERROR(members.status());
  if (chat) {
    QUERN_RETURN_IF_ERROR(ReadMessages(members, model.served, request));
  } else {
    const Json* prompt = members.Find("prompt");
    if (prompt == nullptr) return InvalidArgument("no \"prompt\"");
    QUERN_RETURN_IF_ERROR(ReadPrompts(*prompt, special, model, request));
  }
  QUERN_RETURN_IF_ERROR(CheckLengths(members, model, request));
  return request;
}

Json ApiAnswer::Frame(bool chunk) const {
  const char* object = !request.chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  return {
      {"id", id}, {"object", object}, {"created", created}, {"model", model.name}, {"system_fingerprint", versions}};
}

Json ApiAnswer::Choice(const ApiPart& part, bool chunk, bool first) const {
  Json choice = {{"index", part.index}};
  if (!request.chat) {
    choice["text"] = part.text;
  } else {
    Json message = Json::object();
    if (!chunk || first) message["role"] = "assistant";
    message["content"] = part.text;
    choice[chunk ? "delta" : "message"] = std::move(message);
  }
  const Tokenizer* tokenizer = model.served.tokenizer.get();
  choice["logprobs"] = nullptr;
  if (request.log_probs.has_value())
    choice["logprobs"] = request.chat ? ChatLogProbs(tokenizer, part) : TextLogProbs(tokenizer, part);
  choice["finish_reason"] = part.finish_reason ? Json(ReasonName(*part.finish_reason)) : Json();
  if (request.token_ids) {
    choice["token_ids"] = std::vector<int32_t>(part.tokens.begin(), part.tokens.end());
    if (!chunk || first) choice["prompt_token_ids"] = std::vector<int32_t>(part.prompt.begin(), part.prompt.end());
  }
  return choice;
}

std::string ApiAnswer::Whole(const std::vector<ApiPart>& choices, const ApiUsage& usage) const {
  Json json = Frame(false);
  json["choices"] = Json::array();
  for (const ApiPart& part : choices) json["choices"].push_back(Choice(part, false, true));
  json["usage"] = UsageJson(usage);
  return Dump(json);
}

std::string ApiAnswer::Event(const ApiPart& part, bool first) const {
  Json json = Frame(true);
  json["choices"] = Json::array({Choice(part, true, first)});
  return "data: " + Dump(json) + "\n\n";
}

std::string ApiAnswer::UsageEvent(const ApiUsage& usage) const {
  Json json = Frame(true);
  json["choices"] = Json::array();
  json["usage"] = UsageJson(usage);
  return "data: " + Dump(json) + "\n\n";
}

std::string ModelsJson(const ApiModel& model, const std::string& version, int64_t created) {
  const Json one = {{"id", model.name},
                    {"object", "model"},
                    {"created", created},
                    {"owned_by", "quern"},
                    {"max_model_len", model.max_tokens},
                    {"system_fingerprint", version}};
  return Dump({{"object", "list"}, {"data", Json::array({one})}});
}

}  // namespace quern
