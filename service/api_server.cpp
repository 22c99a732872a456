#include "service/api_server.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <unordered_map>

#include "base/log.h"
#include "base/strings.h"
#include "service/openai.h"
#include "service/text_stream.h"
#include "transport/metric_list.h"

namespace quern {

namespace {

constexpr char kJson[] = "application/json";
constexpr char kBusy[] = "too many requests are under way; try again later";
constexpr char kStopping[] = "the server stops";
constexpr int kClientHasGone = 499;  // in metrics: nobody was there to be answered

void Refuse(HttpReply& reply, int status, std::string_view message) {
  reply.Send(status, kJson, HttpErrorJson(status, message));
}

int HttpStatus(const Status& status) {
  switch (status.code()) {
    case StatusCode::kNotFound: return 404;
    case StatusCode::kInvalidArgument:
    case StatusCode::kResourceExhausted: return 400;
    default: return 500;
  }
}

// A queue whose Take waits, unless `wait` is false, until there is something or it is closed.
template <typename T>
class Inbox {
 public:
  void Put(T item) {
    {
      std::lock_guard lock(mutex_);
      items_.push_back(std::move(item));
    }
    filled_.notify_one();
  }
  std::deque<T> Take(bool wait) {
    std::unique_lock lock(mutex_);
    if (wait) filled_.wait(lock, [&] { return closed_ || !items_.empty(); });
    return std::exchange(items_, {});
  }
  void Close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    filled_.notify_all();
  }
  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<T> items_;
  bool closed_ = false;
};

struct Unread {
  bool chat = false;
  std::string body;
  std::shared_ptr<HttpReply> reply;
  Clock::time_point arrived = Clock::now();
};

struct Choice {
  int64_t index = 0;
  int64_t sequence = 0;
  std::span<const int32_t> prompt;
  TextStream text;
  Completion done = {};
  bool finished = false;
  std::optional<Clock::time_point> last_token = {};
  // What streaming has sent.
  size_t sent_bytes = 0, sent_tokens = 0;
  int64_t sent_characters = 0;
  bool sent_any = false, sent_end = false;
};

// A request that was read, until it is answered; the engine's thread only, after it was made.
struct Exchange {
  ApiRequest request;
  std::shared_ptr<HttpReply> reply;
  std::string id;
  int64_t created = 0;
  Deadline deadline;
  Clock::time_point arrived = {};
  std::string versions = {};       // of the weights that its tokens came from
  bool begun = false;              // there is a token
  std::list<Choice> choices = {};  // stay where they are: the engine calls back into their text

  int64_t count() const { return static_cast<int64_t>(request.prompts.size()) * request.n; }
  ApiAnswer Answer(const ApiModel& model) const { return {model, request, id, created, versions}; }
  ApiUsage Usage() const {
    ApiUsage usage;
    for (const std::vector<int32_t>& prompt : request.prompts) usage.prompt_tokens += std::ssize(prompt);
    for (const Choice& choice : choices) usage.completion_tokens += std::ssize(choice.done.tokens);
    return usage;
  }
};

int64_t Characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

class EngineServer : public ApiServer {
 public:
  EngineServer(Ops& ops, ServedPolicy served, const ApiServerOptions& options)
      : options_(options), engine_(ops, options.engine), started_(std::time(nullptr)) {
    metrics_.Set(kUpSince, UnixSeconds());
    metrics_.Set(kBuildInfo, 1, {{"version", QUERN_VERSION}, {"role", kRoleServer}, {"index", "0"}, {"run", ""}});
    engine_.SetPolicy(served.policy);
    version_ = served.version;
    const int64_t vocabulary = served.vocab_size();
    served.policy = nullptr;  // the engine has it until it has another
    model_ = {options.model_name, std::move(served), std::min(engine_.max_positions(), engine_.max_cached_tokens()),
              vocabulary};
  }

  Status Listen() {
    reader_ = std::thread([this] { ReadRequests(); });
    stepper_ = std::thread([this] { Run(); });
    HttpServerOptions http = options_.http;
    http.refused = [this](int code) { metrics_.Add(kHttpRefused, 1, {{"code", std::to_string(code)}}); };
    QUERN_ASSIGN_OR_RETURN(http_, HttpServer::Start(http, [this](HttpRequest request, std::shared_ptr<HttpReply> r) {
                             Route(std::move(request), std::move(r));
                           }));
    return {};
  }

  ~EngineServer() override {
    unread_.Close();
    read_.Close();
    if (reader_.joinable()) reader_.join();
    if (stepper_.joinable()) stepper_.join();
    for (const auto& exchange : read_.Take(false))
      if (exchange != nullptr) Refuse(*exchange->reply, 503, kStopping);
    for (const Unread& request : unread_.Take(false)) Refuse(*request.reply, 503, kStopping);
    http_.reset();  // calls Route until it is gone
  }

  int port() const override { return http_->port(); }
  void Replace(std::function<Result<ServedPolicy>()> load) override {
    {
      std::lock_guard lock(counters_mutex_);
      replacement_ = std::move(load);
    }
    read_.Put(nullptr);
  }
  Counters counters() const override {
    std::lock_guard lock(counters_mutex_);
    return counters_;
  }

 private:
  // The HTTP server's thread.
  void Route(HttpRequest request, std::shared_ptr<HttpReply> reply) {
    const bool chat = request.path == "/v1/chat/completions";
    const bool get = request.method == "GET" || request.method == "HEAD";
    if (request.path == "/healthz" && get) {
      reply->Send(200, "text/plain", "ok\n");
    } else if (request.path == "/v1/models" && get) {
      std::lock_guard lock(counters_mutex_);
      reply->Send(200, kJson, ModelsJson(model_, version_, started_));
    } else if (request.path == "/metrics" && get) {
      reply->Send(200, kPrometheusText, metrics_.Text());
    } else if (!chat && request.path != "/v1/completions") {
      Refuse(*reply, 404,
             "no such page: POST /v1/completions and /v1/chat/completions, GET /v1/models, /healthz and /metrics");
    } else if (request.method != "POST") {
      RefuseAndCount(*reply, chat, 405, request.path + " takes POST");
    } else if (under_way_.load() >= options_.max_choices) {
      RefuseAndCount(*reply, chat, 503, kBusy);
    } else {
      ++under_way_;
      unread_.Put({chat, std::move(request.body), std::move(reply)});
    }
  }

  // The reading thread.
  void ReadRequests() {
    while (!unread_.closed()) {
      for (Unread& request : unread_.Take(true)) {
        if (!unread_.closed()) Read(std::move(request));
      }
    }
  }

  void Read(Unread unread) {
    if (unread.reply->closed()) {
      --under_way_;
      return;
    }
    Result<ApiRequest> request = ParseApiRequest(unread.chat, unread.body, model_);
    if (!request.ok()) {
      --under_way_;
      return RefuseAndCount(*unread.reply, unread.chat, HttpStatus(request.status()), request.status().message());
    }
    thread_local std::random_device random;
    auto exchange = std::make_unique<Exchange>(
        Exchange{.request = *std::move(request),
                 .reply = std::move(unread.reply),
                 .id = StrFormat("%s-%08x%08x", unread.chat ? "chatcmpl" : "cmpl", random(), random()),
                 .created = std::time(nullptr),
                 .deadline = Deadline::After(std::chrono::seconds(options_.timeout_s)),
                 .arrived = unread.arrived});
    // While it was unread it counted as one.
    const int64_t others = under_way_.fetch_add(exchange->count() - 1) - 1;
    if (others > 0 && others + exchange->count() > options_.max_choices) {
      under_way_ -= exchange->count();
      return RefuseAndCount(*exchange->reply, unread.chat, 503, kBusy);
    }
    read_.Put(std::move(exchange));
  }

  // The engine's thread, and what follows.
  void Run() {
    while (!read_.closed()) {
      auto arrived = read_.Take(/*wait=*/exchanges_.empty());
      TakeReplacement();
      for (std::unique_ptr<Exchange>& exchange : arrived)
        if (exchange != nullptr) Begin(std::move(exchange));
      EndThose([&](Exchange& e) { return Abandoned(e); });
      if (!exchanges_.empty()) {
        if (Result<std::vector<Completion>> finished = engine_.Step(); finished.ok()) {
          for (Completion& completion : *finished) Finish(std::move(completion));
          EndThose([&](Exchange& e) { return Deliver(e); });
        } else {
          LogError(finished.status().message());
          EndThose([&](Exchange& e) { return Fail(e, HttpStatus(finished.status()), finished.status().message()); });
        }
      }
      Count();
    }
    EndThose([&](Exchange& e) { return Fail(e, 503, kStopping); });
  }

  void TakeReplacement() {
    std::function<Result<ServedPolicy>()> load;
    {
      std::lock_guard lock(counters_mutex_);
      load = std::exchange(replacement_, nullptr);
    }
    if (!load) return;
    Result<ServedPolicy> served = load();
    if (!served.ok()) return LogWarning("the weights stay: " + served.status().message());
    const Transformer& model = served->policy->models[0]->transformer;
    if (served->vocab_size() != model_.vocab_size || model.max_positions() < engine_.max_positions())
      return LogWarning(StrCat("the weights stay: ", served->version, " is of another model"));
    engine_.SetPolicy(served->policy);
    for (const auto& exchange : exchanges_)
      exchange->versions = exchange->begun ? exchange->versions + "," + served->version : served->version;
    LogInfo("now serving weights " + served->version);
    std::lock_guard lock(counters_mutex_);
    version_ = served->version;
    ++counters_.replaced;
  }

  void EndThose(const std::function<bool(Exchange&)>& ended) {
    std::erase_if(exchanges_, [&](const std::unique_ptr<Exchange>& exchange) {
      if (!ended(*exchange)) return false;
      Close(*exchange);
      under_way_ -= exchange->count();
      return true;
    });
  }

  void Begin(std::unique_ptr<Exchange> exchange) {
    const ApiRequest& request = exchange->request;
    exchange->versions = version_;
    for (int64_t i = 0; i < exchange->count(); ++i) {
      const std::vector<int32_t>& prompt = request.prompts[static_cast<size_t>(i / request.n)];
      Choice& choice = exchange->choices.emplace_back(Choice{.index = i,
                                                             .sequence = engine_.Open(),
                                                             .prompt = prompt,
                                                             .text = {model_.served.tokenizer, prompt, request.stop}});
      by_sequence_[choice.sequence] = &choice;
      GenerateOptions options;
      options.max_new_tokens = request.max_tokens;
      options.sampling = request.sampling;
      options.seed = request.seed + static_cast<uint64_t>(i % request.n);
      options.stop_ids = request.stop_ids;
      options.stop = [this, &choice, arrived = exchange->arrived](std::span<const int32_t> tokens) {
        const Clock::time_point now = Clock::now();
        if (choice.last_token)
          metrics_.Observe(kServerInter, ToSeconds(now - *choice.last_token));
        else
          metrics_.Observe(kServerFirst, ToSeconds(now - arrived));
        choice.last_token = now;
        return choice.text.Add(tokens.back());
      };
      options.deadline = exchange->deadline;
      options.top_log_probs = request.log_probs.value_or(0);
      engine_.Extend(choice.sequence, prompt);
      engine_.Generate(choice.sequence, std::move(options));
    }
    if (request.stream) exchange->reply->Begin(200, "text/event-stream");
    exchanges_.push_back(std::move(exchange));
  }

  void Finish(Completion completion) {
    Choice& choice = *by_sequence_.at(completion.sequence);
    choice.done = std::move(completion);
    choice.text.Finish();
    choice.finished = true;
    Close(choice);
  }

  // What came since the last step goes to a client that reads along; true when all has been said.
  bool Deliver(Exchange& exchange) {
    const bool all = std::all_of(exchange.choices.begin(), exchange.choices.end(),
                                 [](const Choice& choice) { return choice.finished; });
    exchange.begun =
        exchange.begun || std::any_of(exchange.choices.begin(), exchange.choices.end(), [&](const Choice& c) {
          return c.finished || !engine_.progress(c.sequence).tokens.empty();
        });
    const ApiAnswer answer = exchange.Answer(model_);
    if (exchange.request.stream) {
      for (Choice& choice : exchange.choices) Stream(exchange, answer, choice);
      if (!all) return false;
      if (exchange.request.stream_usage) exchange.reply->Write(answer.UsageEvent(exchange.Usage()));
      exchange.reply->Write("data: [DONE]\n\n");
      exchange.reply->End();
      CountAnswer(exchange.request.chat, 200);
      return true;
    }
    if (!all) return false;
    std::vector<ApiPart> parts;
    for (const Choice& choice : exchange.choices) {
      const Completion& done = choice.done;
      parts.push_back({.index = choice.index,
                       .text = choice.text.text(),
                       .tokens = done.tokens,
                       .log_probs = done.log_probs,
                       .top = done.top,
                       .finish_reason = done.finish_reason,
                       .prompt = choice.prompt});
    }
    exchange.reply->Send(200, kJson, answer.Whole(parts, exchange.Usage()));
    CountAnswer(exchange.request.chat, 200);
    return true;
  }

  void Stream(const Exchange& exchange, const ApiAnswer& answer, Choice& choice) {
    if (choice.sent_end) return;
    const Completion& now = choice.finished ? choice.done : engine_.progress(choice.sequence);
    const size_t tokens = now.tokens.size() - choice.sent_tokens, bytes = choice.text.certain() - choice.sent_bytes;
    // Text may wait for the end of a character or of what may be a stop text; tokens that were asked for need not.
    if (!choice.finished && bytes == 0 && (tokens == 0 || !exchange.request.token_ids)) return;
    ApiPart part{.index = choice.index,
                 .text = choice.text.text().substr(choice.sent_bytes, bytes),
                 .tokens = std::span(now.tokens).subspan(choice.sent_tokens),
                 .log_probs = std::span(now.log_probs).subspan(choice.sent_tokens),
                 .top = std::span(now.top).subspan(std::min(choice.sent_tokens, now.top.size())),
                 .text_offset = choice.sent_characters,
                 .finish_reason = choice.finished ? std::optional(now.finish_reason) : std::nullopt,
                 .prompt = choice.prompt};
    exchange.reply->Write(answer.Event(part, !choice.sent_any));
    choice.sent_any = true;
    choice.sent_end = choice.finished;
    choice.sent_bytes += bytes;
    choice.sent_tokens += tokens;
    choice.sent_characters += Characters(part.text);
  }

  bool Abandoned(const Exchange& exchange) {
    if (!exchange.reply->closed()) return false;
    ++cancelled_;
    CountAnswer(exchange.request.chat, kClientHasGone);
    return true;
  }

  void CountAnswer(bool chat, int code) {
    metrics_.Add(kServerRequests, 1, {{"endpoint", chat ? "chat" : "completions"}, {"code", std::to_string(code)}});
  }
  void RefuseAndCount(HttpReply& reply, bool chat, int status, std::string_view message) {
    CountAnswer(chat, status);
    Refuse(reply, status, message);
  }

  bool Fail(const Exchange& exchange, int status, std::string_view message) {
    CountAnswer(exchange.request.chat, status);
    if (exchange.request.stream) {
      exchange.reply->Write("data: " + HttpErrorJson(status, message) + "\n\n");
      exchange.reply->End();
    } else {
      Refuse(*exchange.reply, status, message);
    }
    return true;
  }

  void Close(Exchange& exchange) {
    for (Choice& choice : exchange.choices) Close(choice);
  }
  void Close(const Choice& choice) {
    if (by_sequence_.erase(choice.sequence) > 0) engine_.Close(choice.sequence);
  }

  void Count() {
    const auto running = static_cast<double>(by_sequence_.size());
    metrics_.Set(kServerRunning, running);
    metrics_.Set(kServerWaiting, std::max(0.0, static_cast<double>(under_way_.load()) - running));
    metrics_.Add(kServerTokens, static_cast<double>(engine_.generated_tokens() - counters_.generated_tokens));
    std::lock_guard lock(counters_mutex_);
    counters_ = {.choices = std::ssize(by_sequence_),
                 .used_pages = engine_.used_pages(),
                 .generated_tokens = engine_.generated_tokens(),
                 .cancelled = cancelled_,
                 .replaced = counters_.replaced};
  }

  const ApiServerOptions options_;
  Metrics metrics_{kRoleServer};
  Engine engine_;
  const int64_t started_;
  ApiModel model_;
  std::atomic<int64_t> under_way_{0};  // choices, and requests that are not read yet
  Inbox<Unread> unread_;
  Inbox<std::unique_ptr<Exchange>> read_;
  std::list<std::unique_ptr<Exchange>> exchanges_;
  std::unordered_map<int64_t, Choice*> by_sequence_;  // those that generate
  int64_t cancelled_ = 0;
  mutable std::mutex counters_mutex_;
  Counters counters_;
  std::string version_;  // written by the engine's thread
  std::function<Result<ServedPolicy>()> replacement_;
  std::thread reader_, stepper_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace

Result<std::unique_ptr<ApiServer>> ApiServer::Start(Ops& ops, ServedPolicy served, const ApiServerOptions& options) {
  auto server = std::make_unique<EngineServer>(ops, std::move(served), options);
  QUERN_RETURN_IF_ERROR(server->Listen());
  return std::unique_ptr<ApiServer>(std::move(server));
}

}  // namespace quern
