#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/e2e/quern_process.h"
#include "tests/transport/http_client.h"

namespace quern {
namespace {

using Json = nlohmann::json;
using testing::HttpClient;

std::vector<Json> Lines(const std::string& text) {
  std::vector<Json> rows;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    rows.push_back(Json::parse(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return rows;
}

// From a job with a selective model to budgets, and models that are served with them.
TEST(Selective, TrainsFindsBudgetsAndServesWithThem) {
  const QuernProcess::Folder folder;
  const std::string job =
      "name: small\n"
      "model: {config: {model_type: qwen3, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,\n"
      "                 max_position_embeddings: 100, selective_attention: true}}\n"
      "environment: {name: text, length: 60}\n"
      "data:\n"
      "  collect: [{player: writer, episodes: 64}]\n"
      "  heldout: [{player: writer, part: heldout, episodes: 12}]\n"
      "method: sft\n"
      "sft: {max_steps: 20, learning_rate: 1e-2, batch_size: 8, warmup_steps: 2, memory_loss: 0.1}\n"
      "evaluate: {episodes: 6, players: []}\n"
      "compression: {budgets: [2, 3]}\n";
  ASSERT_TRUE(WriteFileAtomic(folder.File("small.yaml"), job).ok());
  const std::string run = folder.File("run"), model = folder.File("model"), texts = folder.File("texts.jsonl");
  const auto quern = [&](const std::vector<std::string>& arguments) {
    const auto ended = QuernProcess::Run(folder, arguments);
    EXPECT_EQ(ended.code, 0) << arguments[0] << ": " << ended.err;
    return ended.out;
  };
  quern({"run", folder.File("small.yaml"), "output_dir=" + run});
  int steps = 0;
  for (const Json& line : Lines(*ReadFile(run + "/metrics.jsonl"))) {
    if (!line.contains("live_share")) continue;
    EXPECT_GT(line["live_share"], 0.0);
    EXPECT_LE(line["live_share"], 1.0);
    ++steps;
  }
  EXPECT_GT(steps, 0);
  // The policy was evaluated under the compression, which its records say, and what it changed.
  const Json result = Json::parse(*ReadFile(run + "/result.json"));
  for (const Json& row : result.at("table")) {
    if (row["policy"] == "data") continue;
    EXPECT_GT(row.at("log_prob_difference"), 0.0) << row;
  }
  int played = 0;
  for (const Json& record :
       Lines(quern({"replay", "query", "--store", run + "/replay", "--tag", "eval", "-o", "jsonl"}))) {
    EXPECT_EQ(record.at("sampling").at("compression").at("budgets"), Json({2, 3}));
    EXPECT_GT(record.at("log_prob_difference"), 0.0);
    ++played;
  }
  EXPECT_EQ(played, 6);
  for (const Json& record :
       Lines(quern({"replay", "query", "--store", run + "/replay", "--tag", "heldout", "-o", "jsonl"})))
    EXPECT_FALSE(record.contains("log_prob_difference"));
  quern({"export", "--run", run, "--to", model});
  quern({"replay", "export", "--store", run + "/replay", "--tag", "heldout", "--to", texts});

  const Json all = Json::parse(quern({"budget", "--model", model, "--input", texts, "--max-increase", "0", "--least",
                                      "62", "--to", folder.File("all.json"), "-o", "json"}));
  EXPECT_EQ(all["positions"], 62);  // the start, 60 characters, the end
  EXPECT_EQ(all["budgets"], Json({62, 62}));
  EXPECT_EQ(all["loss"], all["budget_loss"]);
  const Json few = Json::parse(quern({"budget", "--model", model, "--input", texts, "--max-increase", "0.5", "--to",
                                      folder.File("few.json"), "-o", "json"}));
  EXPECT_LT(few["kept"], 0.5);
  EXPECT_LE(few["budget_loss"], few["target_loss"]);

  const auto scores = [&](const std::string& budgets) {
    std::vector<std::string> arguments = {"score", "--model", model, "--input", texts};
    if (!budgets.empty()) arguments.insert(arguments.end(), {"--budgets", folder.File(budgets)});
    return quern(arguments);
  };
  EXPECT_EQ(scores(""), scores("all.json")) << "a budget of all positions changes nothing";
  double nll = 0, tokens = 0;
  for (const Json& row : Lines(scores("few.json"))) {
    nll += row["nll"].get<double>();
    tokens += 61;
  }
  EXPECT_NEAR(nll / tokens, few["budget_loss"], 1e-5);

  // What is generated with budgets has the log-probabilities that scoring it token by token gives.
  std::filesystem::remove(model + "/policy.json");  // it keeps generate from the reserved token
  const std::string prompt = "2,5,9,12,14,7,3";
  const std::string generated = quern({"generate", "--model", model, "--token-ids", prompt, "--max-tokens", "50",
                                       "--ignore-eos", "--budgets", folder.File("few.json"), "-o", "json"});
  const Json completion = Lines(generated).at(0);
  Json ids = completion["prompt_token_ids"];
  for (const Json& id : completion["token_ids"]) ids.push_back(id);
  ASSERT_TRUE(WriteFileAtomic(texts, Json({{"token_ids", ids}}).dump() + "\n").ok());
  const Json scored = Lines(quern({"score", "--model", model, "--input", texts, "--budgets", folder.File("few.json"),
                                   "--prompt-tokens", "7"}))
                          .at(0);
  EXPECT_GT(scored["kv_bytes"], 0);
  for (size_t i = 0; i < completion["logprobs"].size(); ++i)
    EXPECT_EQ(scored["logprobs"][7 + i], completion["logprobs"][i]) << i;

  QuernProcess server(folder, {"serve", "--model", model, "--port", "0", "--budgets", folder.File("few.json")});
  ASSERT_TRUE(Eventually([&] { return ReadFile(server.out())->ends_with("\n"); }));
  const std::string url = *ReadFile(server.out());
  const std::string answer =
      HttpClient::Ask(std::atoi(url.substr(url.rfind(':') + 1).c_str()), "POST", "/v1/completions",
                      Json({{"prompt", {2, 5, 9, 12, 14, 7, 3}},
                            {"max_tokens", 50},
                            {"seed", completion["seed"]},
                            {"ignore_eos", true},
                            {"logprobs", 0},
                            {"return_token_ids", true}})
                          .dump());
  ASSERT_EQ(HttpClient::StatusOf(answer), 200) << answer;
  const Json choice = Json::parse(HttpClient::BodyOf(answer))["choices"][0];
  EXPECT_EQ(choice["token_ids"], completion["token_ids"]);
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], completion["logprobs"]);
}

// A model that was trained without: selective attention is switched on without a change, and then learned.
TEST(Selective, IsLearnedByAModelThatWasTrainedWithout) {
  const QuernProcess::Folder folder;
  const std::string rest =
      "environment: {name: text, length: 60}\n"
      "data:\n"
      "  collect: [{player: writer, episodes: 64}]\n"
      "  heldout: [{player: writer, part: heldout, episodes: 12}]\n"
      "method: sft\n"
      "evaluate: {episodes: 0}\n";
  ASSERT_TRUE(WriteFileAtomic(folder.File("plain.yaml"),
                              "model: {config: {model_type: qwen3, hidden_size: 32, num_hidden_layers: 2,\n"
                              "                 num_attention_heads: 2, max_position_embeddings: 100}}\n"
                              "sft: {max_steps: 20, learning_rate: 1e-2, batch_size: 8, warmup_steps: 2}\n" +
                                  rest)
                  .ok());
  ASSERT_TRUE(
      WriteFileAtomic(folder.File("more.yaml"),
                      "model_name_or_path: plain\n"
                      "model: {selective_attention: true}\n"
                      "sft: {max_steps: 30, learning_rate: 1e-2, batch_size: 8, warmup_steps: 2, memory_loss: 0.1}\n" +
                          rest)
          .ok());
  const auto quern = [&](const std::vector<std::string>& arguments) {
    const auto ended = QuernProcess::Run(folder, arguments);
    EXPECT_EQ(ended.code, 0) << arguments[0] << ": " << ended.err;
    return ended.out;
  };
  const std::string plain = folder.File("plain"), retrofitted = folder.File("retrofitted"), run = folder.File("run");
  quern({"run", folder.File("plain.yaml"), "output_dir=" + run});
  quern({"export", "--run", run, "--to", plain});
  quern({"replay", "export", "--store", run + "/replay", "--tag", "heldout", "--to", folder.File("texts.jsonl")});
  quern({"retrofit", "--model", plain, "--to", retrofitted});
  const auto scores = [&](const std::string& model) {
    return quern({"score", "--model", model, "--input", folder.File("texts.jsonl")});
  };
  const std::string as_trained = scores(plain);
  EXPECT_EQ(as_trained, scores(retrofitted)) << "nothing is selected yet";

  quern({"run", folder.File("more.yaml"), "output_dir=" + folder.File("more")});
  EXPECT_EQ(scores(folder.File("more/model")), as_trained) << "what the training started from";
  std::vector<Json> steps;
  for (Json& line : Lines(*ReadFile(folder.File("more/metrics.jsonl"))))
    if (line.contains("live_share")) steps.push_back(std::move(line));
  ASSERT_FALSE(steps.empty());
  EXPECT_LT(steps.back()["live_share"], steps.front()["live_share"]);
  quern({"export", "--run", folder.File("more"), "--to", folder.File("learned")});
  const Json inspected = Json::parse(quern({"inspect", "--model", folder.File("learned"), "-o", "json"}));
  EXPECT_EQ(inspected.dump().find("unsupported\":[\""), std::string::npos) << inspected;
  EXPECT_NE(scores(folder.File("learned")), as_trained);
}

}  // namespace
}  // namespace quern
