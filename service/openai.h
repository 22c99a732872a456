#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "actors/engine.h"
#include "service/served_policy.h"

namespace quern {

// What is answered about: a policy under the name that requests give it.
struct ApiModel {
  std::string name;
  ServedPolicy served;     // what reads and writes texts; the policy may be another one by now
  int64_t max_tokens = 0;  // prompt and answer together
  int64_t vocab_size = 0;
};

// A request of OpenAI's completions or chat API (docs/cli.md says which members of theirs mean something here).
struct ApiRequest {
  bool chat = false;
  std::vector<std::vector<int32_t>> prompts;
  int64_t n = 1;           // choices of each prompt
  int64_t max_tokens = 0;  // of an answer
  SamplingOptions sampling;
  uint64_t seed = 0;  // choice i of a prompt uses seed + i
  std::vector<std::string> stop;
  std::vector<int32_t> stop_ids;
  std::optional<int32_t> log_probs;  // how many of the likeliest ids come with each token
  bool token_ids = false;
  bool stream = false;
  bool stream_usage = false;
};

// Reads a request's JSON, with limits. NotFound: another model is asked for; InvalidArgument: everything else.
Result<ApiRequest> ParseApiRequest(bool chat, const std::string& body, const ApiModel& model);

// A part of a choice: what came since the part before it, or all of it.
struct ApiPart {
  int64_t index = 0;
  std::string text;
  // Of the part's tokens; `top` is there where it was asked for.
  std::span<const int32_t> tokens;
  std::span<const float> log_probs;
  std::span<const std::vector<TokenLogProb>> top;
  int64_t text_offset = 0;                    // characters of the choice before the part
  std::optional<FinishReason> finish_reason;  // of the last part
  std::span<const int32_t> prompt;            // where it is to be told
};

struct ApiUsage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
};

// What all answers to one request have in common.
struct ApiAnswer {
  const ApiModel& model;
  const ApiRequest& request;
  std::string id;
  int64_t created = 0;   // Unix time
  std::string versions;  // of the weights that its tokens came from, in order, commas between them

  std::string Whole(const std::vector<ApiPart>& choices, const ApiUsage& usage) const;
  // A server-sent event. `first`: nothing of the choice was sent yet.
  std::string Event(const ApiPart& part, bool first) const;
  std::string UsageEvent(const ApiUsage& usage) const;

 private:
  nlohmann::ordered_json Frame(bool chunk) const;
  nlohmann::ordered_json Choice(const ApiPart& part, bool chunk, bool first) const;
};

// The answer to GET /v1/models.
std::string ModelsJson(const ApiModel& model, const std::string& version, int64_t created);

}  // namespace quern
