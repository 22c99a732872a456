#include "base/check.h"
#include "compute/cpu/cpu_ops.h"
#include "model/tokenizer/char_tokenizer.h"
#include "service/openai.h"

// The body of a completions or chat request, by the first byte: one line of error, or a request within the limits.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  static ThreadPool pool(1);
  static const std::unique_ptr<Ops> ops = NewCpuOps(&pool);
  static const ApiModel model = [] {
    ModelConfig config;
    config.vocab_size = 40;
    config.hidden_size = 8;
    config.intermediate_size = 8;
    config.layers = 1;
    config.heads = 1;
    config.kv_heads = 1;
    config.head_dim = 8;
    config.max_positions = 64;
    auto policy = std::make_shared<Policy>();
    policy->models.push_back(std::make_shared<ServedModel>(*ops, config, Recipe(), 64));
    ApiModel made;
    made.name = "m";
    made.served.policy = policy;
    std::vector<std::string> pieces;
    for (char c = 'a'; c <= 'z'; ++c) pieces.emplace_back(1, c);
    made.served.tokenizer = *Tokenizer::Parse(*MakeTokenizerJson(pieces, {"<unk>", "<s>", "</s>"}), "", "t");
    made.max_tokens = 64;
    return made;
  }();
  if (size == 0) return 0;
  const auto request =
      ParseApiRequest(data[0] % 2 == 1, std::string(reinterpret_cast<const char*>(data + 1), size - 1), model);
  if (!request.ok()) {
    QUERN_CHECK(request.status().message().find('\n') == std::string::npos, request.status().message());
    return 0;
  }
  QUERN_CHECK(!request->prompts.empty() && request->n >= 1 && request->n * request->prompts.size() <= 128);
  for (const auto& prompt : request->prompts)
    for (const int32_t id : prompt) QUERN_CHECK(id >= 0 && id < 40);
  return 0;
}
