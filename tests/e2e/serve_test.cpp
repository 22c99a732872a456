// `quern generate` over a file of prompts and `quern serve`, with a model that a small job made.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"
#include "tests/transport/http_client.h"

namespace quern {
namespace {

using Json = nlohmann::ordered_json;
using testing::HttpClient;

class ServeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto ended = QuernProcess::Run(
        folder_, RunArguments(folder_, {"compare=[]", "method=sft", "online.rounds=0", "evaluate.episodes=0",
                                        "data.collect=[{player: random, episodes: 8}]", "sft.max_steps=1"}));
    ASSERT_EQ(ended.code, 0) << ended.err;
  }

  QuernProcess::Folder folder_;
};

TEST_F(ServeTest, GenerateAnswersAFileOfPromptsInOrderAndServeGivesTheSame) {
  const std::string model = folder_.File("run/model");
  ASSERT_TRUE(
      WriteFileAtomic(model + "/chat_template.jinja",
                      "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}\n{% endif %}")
          .ok());
  std::string rows;
  for (int i = 0; i < 300; ++i) {
    const std::string word(static_cast<size_t>(1 + i % 20), static_cast<char>('a' + i % 26));
    rows += i % 2 == 0 ? Json{{"prompt", "Wordle:\n" + word}}.dump() + "\n"
                       : Json{{"messages", {{{"role", "user"}, {"content", word}}}}}.dump() + "\n";
  }
  ASSERT_TRUE(WriteFileAtomic(folder_.File("prompts.jsonl"), rows).ok());
  const auto ended = QuernProcess::Run(
      folder_, {"generate", "--model", "run/model", "--prompts", "prompts.jsonl", "--max-tokens", "20", "--ignore-eos",
                "--seed", "7", "--top-logprobs", "1", "--kv-cache-mib", "1", "-o", "json"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  std::vector<Json> lines;
  for (size_t at = 0; at < ended.out.size(); at = ended.out.find('\n', at) + 1)
    lines.push_back(Json::parse(ended.out.substr(at, ended.out.find('\n', at) - at), nullptr, false));
  ASSERT_EQ(lines.size(), 300u);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["index"], i);
    EXPECT_EQ(lines[i]["token_ids"].size(), 20u);
    EXPECT_EQ(lines[i]["top_logprobs"].size(), 20u);
  }

  const std::string token = "0123456789abcdef";
  ASSERT_TRUE(WriteFileAtomic(folder_.File("token"), token + "\n").ok());
  QuernProcess server(folder_, {"serve", "--model", "run/model", "--port", "0", "--token-file", "token"});
  int port = 0;
  ASSERT_TRUE(Eventually([&] {
    const Result<std::string> out = ReadFile(server.out());
    if (!out.ok() || !out->ends_with("\n")) return false;
    port = atoi(out->substr(out->rfind(':') + 1).c_str());
    return true;
  }));
  const std::string headers = "Host: localhost\r\nAuthorization: Bearer " + token + "\r\n";
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(port, "GET", "/healthz")), 200);
  EXPECT_EQ(HttpClient::StatusOf(HttpClient::Ask(port, "GET", "/v1/models")), 401);
  for (const size_t i : {0, 1, 31}) {
    const bool chat = i % 2 == 1;
    const std::string word(1 + i % 20, static_cast<char>('a' + i % 26));
    Json body = {{"model", "model"}, {"seed", 7}, {"max_tokens", 20}, {"ignore_eos", true}, {"return_token_ids", true}};
    if (chat) {
      body["messages"] = {{{"role", "user"}, {"content", word}}};
    } else {
      body["prompt"] = "Wordle:\n" + word;
    }
    const std::string answer =
        HttpClient::Ask(port, "POST", chat ? "/v1/chat/completions" : "/v1/completions", body.dump(), headers);
    ASSERT_EQ(HttpClient::StatusOf(answer), 200) << answer;
    const Json choice = Json::parse(HttpClient::BodyOf(answer))["choices"][0];
    EXPECT_EQ(choice["prompt_token_ids"], lines[i]["prompt_token_ids"]);
    EXPECT_EQ(choice["token_ids"], lines[i]["token_ids"]);
    EXPECT_EQ(chat ? choice["message"]["content"] : choice["text"], lines[i]["text"]);
  }
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait().code, 0);

  const auto open = QuernProcess::Run(folder_, {"serve", "--model", "run/model", "--host", "0.0.0.0", "--port", "0"});
  EXPECT_EQ(open.code, 1);
  EXPECT_NE(open.err.find("give a file with a token"), std::string::npos) << open.err;
  EXPECT_EQ(QuernProcess::Run(folder_, {"serve", "--run", "nowhere"}).code, 102);
  EXPECT_EQ(QuernProcess::Run(folder_, {"serve"}).code, 2);
}

// A server that follows a run answers with the untrained model until something is trained, then with what is newest.
TEST_F(ServeTest, FollowsARun) {
  const std::string weights = folder_.File("run/weights.json"), hidden = folder_.File("hidden.json");
  const Json trained = Json::parse(*ReadFile(weights));
  ASSERT_EQ(std::rename(weights.c_str(), hidden.c_str()), 0);
  QuernProcess server(folder_, {"serve", "--run", "run", "--follow", "--port", "0"});
  int port = 0;
  ASSERT_TRUE(Eventually([&] {
    const Result<std::string> out = ReadFile(server.out());
    if (!out.ok() || !out->ends_with("\n")) return false;
    port = atoi(out->substr(out->rfind(':') + 1).c_str());
    return true;
  }));
  const auto version = [&] {
    const std::string answer =
        HttpClient::Ask(port, "POST", "/v1/completions", R"({"prompt": "a", "max_tokens": 1})", "Host: localhost\r\n");
    return Json::parse(HttpClient::BodyOf(answer), nullptr, false).value("system_fingerprint", "");
  };
  const std::string base = version(), newest = trained["sft"]["content_hash"];
  EXPECT_NE(base, "");
  EXPECT_NE(base, newest);
  ASSERT_EQ(std::rename(hidden.c_str(), weights.c_str()), 0);
  EXPECT_TRUE(Eventually([&] { return version() == newest; }));
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait().code, 0);
  EXPECT_EQ(QuernProcess::Run(folder_, {"serve", "--model", "run/model", "--follow"}).code, 2);
}

}  // namespace
}  // namespace quern
