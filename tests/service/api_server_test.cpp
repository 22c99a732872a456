// The HTTP API through a real socket, over a small random model.
#include "service/api_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "base/random.h"
#include "base/strings.h"
#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"
#include "model/tokenizer/char_tokenizer.h"
#include "service/openai.h"
#include "service/text_stream.h"
#include "tests/model/small_model.h"
#include "tests/resident.h"
#include "tests/transport/http_client.h"

namespace quern {
namespace {

using Json = nlohmann::ordered_json;
using testing::HttpClient;

// One id for each printable ASCII character.
std::shared_ptr<const Tokenizer> CharacterTokenizer() {
  std::vector<std::string> pieces;
  for (char c = ' '; c < 127; ++c) pieces.emplace_back(1, c);
  auto tokenizer = Tokenizer::Parse(*MakeTokenizerJson(pieces, {}), "", "test");
  QUERN_CHECK(tokenizer.ok(), tokenizer.status().ToString());
  return *tokenizer;
}

class ApiServerTest : public ::testing::Test {
 protected:
  ApiServerTest() : pool_(2), ops_(NewCpuOps(&pool_)), tokenizer_(CharacterTokenizer()) {
    config_ = SmallModel(tokenizer_->vocab_size());
    config_.max_positions = 100000;
    served_ = {.policy = NewPolicy(1),
               .version = "0123abcd",
               .tokenizer = tokenizer_,
               .chat_template = nullptr,
               .end_ids = {}};
    served_.chat_template = *ChatTemplate::Parse(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}",
        "test", Json::object());
  }

  std::shared_ptr<const Policy> NewPolicy(uint64_t seed) {
    Parameters parameters(config_);
    parameters.Initialize(config_, seed);
    auto model = std::make_shared<ServedModel>(*ops_, config_, DType::kF32, config_.max_positions);
    QUERN_CHECK(model->weights.Load(parameters.Source()).ok());
    auto policy = std::make_shared<Policy>();
    policy->label = "test";
    policy->models = {model};
    policy->head = std::make_shared<SingleModelHead>();
    return policy;
  }

  void Start(int64_t max_choices = 64, int timeout_s = 600) {
    ApiServerOptions options;
    options.timeout_s = timeout_s;
    if (timeout_s < 600) options.engine.kv_bytes = 8 << 20;  // soon full, so that memory can be seen to be flat
    options.model_name = "tiny";
    options.max_choices = max_choices;
    auto started = ApiServer::Start(*ops_, served_, options);
    ASSERT_TRUE(started.ok()) << started.status().ToString();
    server_ = *std::move(started);
  }
  std::string Post(const std::string& path, const Json& body) {
    return HttpClient::Ask(server_->port(), "POST", path, body.dump());
  }
  Json Complete(Json body, const std::string& path = "/v1/completions") {
    const std::string answer = Post(path, body);
    EXPECT_EQ(HttpClient::StatusOf(answer), 200) << answer;
    return Json::parse(HttpClient::BodyOf(answer), nullptr, false);
  }
  // The events of a streamed answer, without the last, which must be [DONE].
  std::vector<Json> Events(Json body, const std::string& path = "/v1/completions") {
    body["stream"] = true;
    const std::string answer = Post(path, body);
    EXPECT_EQ(HttpClient::StatusOf(answer), 200) << answer;
    std::vector<Json> events;
    bool done = false;
    for (size_t at = answer.find("data: "); at != std::string::npos; at = answer.find("data: ", at + 1)) {
      EXPECT_FALSE(done);
      const std::string text = answer.substr(at + 6, answer.find("\n\n", at) - at - 6);
      done = text == "[DONE]";
      if (!done) events.push_back(Json::parse(text, nullptr, false));
    }
    EXPECT_TRUE(done);
    return events;
  }
  // What the engine gives by itself.
  Completion Alone(const std::vector<int32_t>& prompt, int64_t length, uint64_t seed,
                   const std::shared_ptr<const Policy>& policy = nullptr) {
    Engine engine(*ops_, {});
    engine.SetPolicy(policy == nullptr ? served_.policy : policy);
    const int64_t id = engine.Open();
    engine.Extend(id, prompt);
    GenerateOptions options;
    options.max_new_tokens = length;
    options.seed = seed;
    options.top_log_probs = 2;
    engine.Generate(id, options);
    while (true) {
      auto step = engine.Step();
      QUERN_CHECK(step.ok());
      if (!step->empty()) return std::move(step->front());
    }
  }
  bool Eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 6000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  ModelConfig config_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  ServedPolicy served_;
  std::unique_ptr<ApiServer> server_;
};

TEST_F(ApiServerTest, GivesTheEnginesTokensAndLogProbabilitiesInAnyCompany) {
  Start();
  const Json body = {
      {"model", "tiny"}, {"prompt", {"Hello", "world"}}, {"n", 2}, {"max_tokens", 40}, {"seed", 5}, {"logprobs", 2},
      {"top_k", -1},     {"return_token_ids", true}};
  std::vector<std::thread> company;
  for (int i = 0; i < 4; ++i)
    company.emplace_back([&, i] {
      Complete({{"prompt", std::string(static_cast<size_t>(10 + 9 * i), 'x')}, {"max_tokens", 60}});
    });
  const Json answer = Complete(body);
  for (std::thread& thread : company) thread.join();
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["system_fingerprint"], "0123abcd");
  EXPECT_EQ(answer["usage"], (Json{{"prompt_tokens", 10}, {"completion_tokens", 160}, {"total_tokens", 170}}));
  ASSERT_EQ(answer["choices"].size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const Json& choice = answer["choices"][i];
    const std::vector<int32_t> prompt = tokenizer_->Encode(i < 2 ? "Hello" : "world", true);
    const Completion alone = Alone(prompt, 40, 5 + i % 2);
    EXPECT_EQ(choice["index"], i);
    EXPECT_EQ(choice["prompt_token_ids"], prompt);
    EXPECT_EQ(choice["token_ids"], alone.tokens);
    EXPECT_EQ(choice["text"], tokenizer_->Decode(alone.tokens, true));
    EXPECT_EQ(choice["finish_reason"], "length");
    const Json& logs = choice["logprobs"];
    ASSERT_EQ(logs["token_logprobs"].size(), 40u);
    for (size_t t = 0; t < 40; ++t) {
      EXPECT_EQ(logs["token_logprobs"][t].get<float>(), alone.log_probs[t]);
      EXPECT_EQ(logs["text_offset"][t], t);
      EXPECT_EQ(logs["top_logprobs"][t].size(), 2u);
      EXPECT_EQ(logs["top_logprobs"][t][tokenizer_->Decode({&alone.top[t][0].id, 1}, false)].get<float>(),
                alone.top[t][0].log_prob);
    }
  }
}

TEST_F(ApiServerTest, StreamsTheSameAnswerInPieces) {
  Start();
  const Json body = {{"prompt", "Hello"},
                     {"max_tokens", 50},
                     {"seed", 9},
                     {"n", 2},
                     {"logprobs", 0},
                     {"return_token_ids", true},
                     {"stream_options", {{"include_usage", true}}}};
  const Json whole = Complete(body);
  std::vector<Json> events = Events(body);
  ASSERT_GT(events.size(), 10u);
  EXPECT_EQ(events.back()["usage"], whole["usage"]);
  events.pop_back();
  std::vector<Json> choices(2, {{"text", ""}, {"token_ids", Json::array()}, {"logs", Json::array()}});
  for (const Json& event : events) {
    const Json& part = event["choices"][0];
    Json& choice = choices[part["index"].get<size_t>()];
    choice["text"] = choice["text"].get<std::string>() + part["text"].get<std::string>();
    for (const Json& id : part["token_ids"]) choice["token_ids"].push_back(id);
    for (const Json& value : part["logprobs"]["token_logprobs"]) choice["logs"].push_back(value);
    choice["finish_reason"] = part["finish_reason"];
  }
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(choices[i]["text"], whole["choices"][i]["text"]);
    EXPECT_EQ(choices[i]["token_ids"], whole["choices"][i]["token_ids"]);
    EXPECT_EQ(choices[i]["logs"], whole["choices"][i]["logprobs"]["token_logprobs"]);
    EXPECT_EQ(choices[i]["finish_reason"], "length");
  }
}

TEST_F(ApiServerTest, EndsAtAStopTextAndNeverShowsAPartOfIt) {
  Start();
  const Json body = {{"prompt", "Hello"}, {"max_tokens", 60}, {"seed", 3}};
  const std::string whole = Complete(body)["choices"][0]["text"];
  ASSERT_EQ(whole.size(), 60u);
  Json stopping = body;
  stopping["stop"] = {whole.substr(20, 3), "not in it"};
  const std::string expected = whole.substr(0, whole.find(whole.substr(20, 3)));
  const Json answer = Complete(stopping);
  EXPECT_EQ(answer["choices"][0]["text"], expected);
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  std::string streamed;
  for (const Json& event : Events(stopping)) streamed += event["choices"][0]["text"];
  EXPECT_EQ(streamed, expected);
  stopping["stop"] = nullptr;
  stopping["stop_token_ids"] = tokenizer_->Encode(whole.substr(4, 1), false);
  EXPECT_EQ(Complete(stopping)["choices"][0]["finish_reason"], "stop");
}

TEST_F(ApiServerTest, ChatRendersTheTemplate) {
  Start();
  const Json body = {{"messages", {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "Hi"}}}}}}},
                     {"max_completion_tokens", 12},
                     {"seed", 1},
                     {"logprobs", true},
                     {"top_logprobs", 3},
                     {"return_token_ids", true}};
  const Json answer = Complete(body, "/v1/chat/completions");
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(choice["prompt_token_ids"], tokenizer_->Encode("[user]Hi[a]", false));
  EXPECT_EQ(choice["message"]["role"], "assistant");
  const Completion alone = Alone(tokenizer_->Encode("[user]Hi[a]", false), 12, 1);
  EXPECT_EQ(choice["message"]["content"], tokenizer_->Decode(alone.tokens, true));
  ASSERT_EQ(choice["logprobs"]["content"].size(), 12u);
  EXPECT_EQ(choice["logprobs"]["content"][3]["logprob"].get<float>(), alone.log_probs[3]);
  EXPECT_EQ(choice["logprobs"]["content"][3]["top_logprobs"].size(), 3u);
  std::string streamed;
  const std::vector<Json> events = Events(body, "/v1/chat/completions");
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(events[0]["object"], "chat.completion.chunk");
  for (const Json& event : events) streamed += event["choices"][0]["delta"]["content"];
  EXPECT_EQ(streamed, choice["message"]["content"]);
}

TEST_F(ApiServerTest, TellsWhatIsWrongWithARequest) {
  Start();
  const auto refused = [&](const std::string& path, const std::string& body, int status, const std::string& why) {
    const std::string answer = HttpClient::Ask(server_->port(), "POST", path, body);
    EXPECT_EQ(HttpClient::StatusOf(answer), status) << answer;
    const Json json = Json::parse(HttpClient::BodyOf(answer), nullptr, false);
    ASSERT_TRUE(json.contains("error")) << answer;
    EXPECT_NE(json["error"]["message"].get<std::string>().find(why), std::string::npos) << answer;
  };
  const std::string text = "/v1/completions", chat = "/v1/chat/completions";
  refused(text, "{", 400, "not a JSON object");
  refused(text, std::string(100000, '['), 400, "nested");
  refused(text, "{}", 400, "no \"prompt\"");
  refused(text, R"({"prompt": "a", "model": "other"})", 404, "only \"tiny\"");
  refused(text, R"({"prompt": ""})", 400, "no token");
  refused(text, R"({"prompt": [1, 100000]})", 400, "vocabulary");
  refused(text, R"({"prompt": [1, -1]})", 400, "vocabulary");
  refused(text, R"({"prompt": "a", "temperature": "hot"})", 400, "\"temperature\" must be");
  refused(text, R"({"prompt": "a", "n": 18446744073709551615})", 400, "\"n\" must be");
  refused(text, R"({"prompt": "a", "n": 1000})", 400, "\"n\" must be");
  refused(text, R"({"prompt": "a", "max_tokens": 100000})", 400, "more than this server's 100000");
  refused(text, R"({"prompt": "a", "presence_penalty": 0.5})", 400, "presence_penalty");
  refused(text, R"({"prompt": "a", "stop": [1]})", 400, "\"stop\"");
  refused(chat, R"({"messages": []})", 400, "messages");
  refused(chat, R"({"messages": [1]})", 400, "role");
  refused(chat, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", 400, "type \"text\"");
  refused("/v1/other", "{}", 404, "no such page");
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(server_->port(), "GET", text)), 405);
  EXPECT_EQ(HttpClient::BodyOf(HttpClient::Ask(server_->port(), "GET", "/healthz")), "ok\n");
  const std::string metrics = HttpClient::BodyOf(HttpClient::Ask(server_->port(), "GET", "/metrics"));
  EXPECT_NE(metrics.find("\nquern_server_requests_running 0"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("quern_server_requests_total{code=\"405\",endpoint="), std::string::npos) << metrics;
  const Json models = Json::parse(HttpClient::BodyOf(HttpClient::Ask(server_->port(), "GET", "/v1/models")));
  EXPECT_EQ(models["data"][0]["id"], "tiny");
  EXPECT_EQ(models["data"][0]["max_model_len"], 100000);
}

TEST_F(ApiServerTest, AClientThatGoesTakesItsPagesWithIt) {
  Start();
  for (const bool stream : {true, false}) {
    const int64_t before = server_->counters().cancelled;
    {
      HttpClient client(server_->port());
      const std::string body = Json{{"prompt", "Hello"}, {"max_tokens", 90000}, {"stream", stream}}.dump();
      client.Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + std::to_string(body.size()) +
                  "\r\n\r\n" + body);
      ASSERT_TRUE(Eventually([&] { return server_->counters().used_pages > 0; }));
    }
    ASSERT_TRUE(Eventually([&] { return server_->counters().cancelled == before + 1; }));
    ASSERT_TRUE(Eventually([&] { return server_->counters().used_pages == 0; }));
    EXPECT_EQ(server_->counters().choices, 0);
  }
  EXPECT_EQ(Complete({{"prompt", "Hello"}})["choices"].size(), 1u);
}

// Under load: what comes from one version is what its weights give, what two versions wrote names both.
TEST_F(ApiServerTest, OtherWeightsTakeOverBetweenStepsAndAnswersNameTheirVersions) {
  const std::map<std::string, std::shared_ptr<const Policy>> policies = {{"0123abcd", served_.policy},
                                                                         {"other", NewPolicy(2)}};
  ServedPolicy other = served_;
  other.policy = policies.at("other");
  other.version = "other";
  constexpr int64_t kLength = 30;
  const std::vector<int32_t> prompt = {5, 6, 7, 8, 9};
  std::map<std::string, std::vector<std::vector<int32_t>>> expected;
  for (const auto& [version, policy] : policies)
    for (uint64_t seed = 0; seed < 8; ++seed) expected[version].push_back(Alone(prompt, kLength, seed, policy).tokens);
  Start();
  std::atomic<int> left = 4;
  std::atomic<int64_t> whole = 0, mixed = 0;
  std::mutex mutex;
  std::set<std::string> seen;
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&] {
      for (int i = 0; i < 400 && (mixed == 0 || whole == 0 || i < 10); ++i) {
        const uint64_t seed = static_cast<uint64_t>(i) % 8;
        const Json answer = Complete({{"prompt", prompt},
                                      {"max_tokens", kLength},
                                      {"seed", seed},
                                      {"return_token_ids", true},
                                      {"ignore_eos", true}});
        const std::string versions = answer["system_fingerprint"];
        const auto tokens = answer["choices"][0]["token_ids"].get<std::vector<int32_t>>();
        const auto one = expected.find(versions);
        if (one != expected.end()) {
          EXPECT_EQ(tokens, one->second[seed]) << versions;
          ++whole;
        } else {
          EXPECT_NE(versions.find(','), std::string::npos) << versions;
          // The first of its versions wrote the beginning.
          EXPECT_EQ(tokens[0], expected.at(versions.substr(0, versions.find(',')))[seed][0]);
          ++mixed;
        }
        std::lock_guard lock(mutex);
        seen.insert(versions);
      }
      --left;
    });
  }
  for (int swap = 0; left > 0; ++swap) {
    server_->Replace([served = swap % 2 == 0 ? other : served_] { return Result<ServedPolicy>(served); });
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GT(mixed, 0);
  EXPECT_GT(whole, 0);
  EXPECT_GT(seen.size(), 1u);

  // What cannot be served changes nothing; the next does.
  server_->Replace([&] { return Result<ServedPolicy>(other); });
  const auto version = [&] {
    return Json::parse(
        HttpClient::BodyOf(HttpClient::Ask(server_->port(), "GET", "/v1/models", "")))["data"][0]["system_fingerprint"];
  };
  EXPECT_TRUE(Eventually([&] { return version() == "other"; }));
  const int64_t replaced = server_->counters().replaced;
  server_->Replace([] { return Result<ServedPolicy>(NotFound("gone")); });
  ServedPolicy larger = served_;
  ++config_.vocab_size;
  larger.policy = NewPolicy(3);
  larger.version = "larger";
  server_->Replace([&] { return Result<ServedPolicy>(larger); });
  EXPECT_EQ(Complete({{"prompt", "a"}})["system_fingerprint"], "other");
  EXPECT_EQ(server_->counters().replaced, replaced);
}

// Clients that ask, stay, and leave at random: every answer is whole, and in the end no page is taken. With 1,000
// requests some time out, and memory is flat.
class ApiServerCrowdTest : public ApiServerTest, public ::testing::WithParamInterface<Compression> {};

TEST_P(ApiServerCrowdTest, ClientsComeAndGoAtRandom) {
  auto policy = std::make_shared<Policy>(*served_.policy);
  policy->compression = GetParam();
  served_.policy = policy;
  const char* asked = std::getenv("QUERN_API_REQUESTS");
  const uint64_t requests = asked == nullptr ? 160 : std::strtoull(asked, nullptr, 10);
  // Timeouts take a second each.
  const bool timeouts = requests >= 1000;
  Start(/*max_choices=*/64, /*timeout_s=*/timeouts ? 1 : 600);
  std::vector<std::thread> clients;
  std::atomic<int64_t> answered = 0, timed_out = 0, left = 0, half_way = 0;
  for (uint64_t c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      Random random(11, c);
      for (uint64_t i = 0; i < requests / 4; ++i) {
        Json body = {{"prompt", std::string(1 + random.Below(150), static_cast<char>('a' + random.Below(3)))},
                     {"max_tokens", 1 + random.Below(40)},
                     {"n", 1 + random.Below(3)},
                     {"seed", i},
                     {"stream", random.Below(2) == 0}};
        if (timeouts && random.Below(50) == 0) body["max_tokens"] = 30000;
        if (i == requests / 8 && c == 0) half_way = testing::ResidentBytes();
        HttpClient client(server_->port());
        const std::string text = body.dump();
        client.Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: " +
                    std::to_string(text.size()) + "\r\n\r\n" + text);
        if (random.Below(3) == 0) {
          if (random.Below(2) == 0) client.ReadUntil("data: ");
          ++left;
          continue;  // gone in the middle of it
        }
        const std::string answer = client.ReadAll();
        if (HttpClient::StatusOf(answer) == 503) continue;  // those that were left are still under way
        ASSERT_EQ(HttpClient::StatusOf(answer), 200) << answer;
        const char* end = body["stream"].get<bool>() ? "data: [DONE]\n\n" : "\"total_tokens\"";
        ASSERT_NE(answer.find(end), std::string::npos) << answer;
        ++answered;
        if (answer.find("\"timeout\"") != std::string::npos) ++timed_out;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GT(answered, 0);
  EXPECT_TRUE(Eventually([&] { return server_->counters().used_pages == 0 && server_->counters().choices == 0; }));
  // What the others had is there again, pages or, under a compression, bytes: else this one would wait for room.
  EXPECT_EQ(Complete({{"prompt", "Hello"}, {"max_tokens", 5}, {"ignore_eos", true}})["choices"][0]["finish_reason"],
            "length");
  const int64_t grown = testing::ResidentBytes() - half_way;
  if (timeouts) {
    EXPECT_GT(timed_out, 0);
    std::printf("%lld answered (%lld timed out), %lld left early; memory since half of them: %+.1f MiB\n",
                static_cast<long long>(answered), static_cast<long long>(timed_out), static_cast<long long>(left),
                static_cast<double>(grown) / (1 << 20));
  }
  EXPECT_LT(grown, (timeouts ? 32 : 64) << 20);
}

INSTANTIATE_TEST_SUITE_P(Caches, ApiServerCrowdTest,
                         ::testing::Values(Compression{},
                                           Compression{.key_channels = 5, .query_window = 8, .recent = 8}),
                         [](const auto& cache) { return cache.param.off() ? "whole" : "compressed"; });

TEST_F(ApiServerTest, RefusesMoreThanItTakesAndEndsWhatIsUnderWayWhenItStops) {
  Start(/*max_choices=*/2);
  HttpClient client(server_->port());
  const std::string body = R"({"prompt": "Hello", "max_tokens": 90000, "n": 2})";
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + std::to_string(body.size()) +
              "\r\n\r\n" + body);
  ASSERT_TRUE(Eventually([&] { return server_->counters().choices == 2; }));
  EXPECT_EQ(HttpClient::StatusOf(Post("/v1/completions", {{"prompt", "a"}})), 503);
  server_.reset();
  const std::string answer = client.ReadAll();
  EXPECT_TRUE(answer.empty() || HttpClient::StatusOf(answer) == 503) << answer;
}

TEST(TextStreamTest, HoldsBackWhatMayBecomeAStopText) {
  const auto tokenizer = CharacterTokenizer();
  TextStream text(tokenizer, {}, {"abc", "bd"});
  std::vector<size_t> certain;
  for (const int32_t id : tokenizer->Encode("xabab", false)) {
    EXPECT_FALSE(text.Add(id));
    certain.push_back(text.certain());
  }
  EXPECT_EQ(certain, (std::vector<size_t>{1, 1, 1, 3, 3}));
  EXPECT_TRUE(text.Add(tokenizer->Encode("d", false)[0]));
  EXPECT_EQ(text.text(), "xaba");
  EXPECT_EQ(text.certain(), 4u);

  TextStream open(tokenizer, {}, {"abc"});
  for (const int32_t id : tokenizer->Encode("xab", false)) EXPECT_FALSE(open.Add(id));
  EXPECT_EQ(open.certain(), 1u);
  open.Finish();
  EXPECT_EQ(open.certain(), 3u);
}

}  // namespace
}  // namespace quern
