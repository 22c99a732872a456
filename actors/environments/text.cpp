#include "actors/environments/text.h"

#include <algorithm>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "base/check.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

std::string Assignments(int characters, uint64_t seed) {
  constexpr int kVariables = 12;
  Random random(seed, kTaskStream);
  std::string values(kVariables, ' '), text;
  while (static_cast<int>(text.size()) < characters) {
    const auto variable = static_cast<size_t>(random.Below(kVariables));
    const bool asks = values[variable] != ' ' && random.Below(2) == 0;
    if (!asks) values[variable] = static_cast<char>('0' + random.Below(10));
    text += {static_cast<char>('a' + variable), asks ? '?' : '=', values[variable], '\n'};
  }
  return text;
}

namespace {

constexpr char kStart[] = "\x02";
constexpr int kMadeUp = 1 << 20;  // characters

struct Pieces {
  // Whole characters, so that no piece begins or ends within one.
  std::vector<std::string> characters;
  size_t length = 0;
  size_t heldout = 0;  // first character of the held-out part

  std::string At(size_t begin) const {
    std::string piece;
    for (size_t i = begin; i < begin + length; ++i) piece += characters[i];
    return piece;
  }
};

class TextEnvironment : public Environment {
 public:
  explicit TextEnvironment(int length) : length_(length) {}

  Observation Reset(uint64_t) override {
    open_ = true;
    return {kStart};
  }
  StepOutcome Step(const std::string&) override {
    QUERN_CHECK(open_, "Step on an episode that is over or was never reset");
    open_ = false;
    return {.text = "", .reward = 0, .done = true, .success = true};
  }
  std::string action_end() const override { return ""; }
  int max_action_tokens() const override { return length_; }
  int max_turns() const override { return 1; }
  double min_return() const override { return 0; }
  double max_return() const override { return 1; }
  std::string task_id() const override { return "text"; }

 private:
  int length_;
  bool open_ = false;
};

class TextPlayer : public Player {
 public:
  TextPlayer(std::shared_ptr<const Pieces> pieces, bool heldout) : pieces_(std::move(pieces)), heldout_(heldout) {}
  void Reset(uint64_t seed, const Observation&) override {
    const Pieces& p = *pieces_;
    const size_t first = heldout_ ? p.heldout : 0, end = heldout_ ? p.characters.size() : p.heldout;
    begin_ = first + Random(seed, kPlayerStream).Below(end - first - p.length + 1);
  }
  std::string Act() override { return pieces_->At(begin_); }
  void Observe(const StepOutcome&) override {}

 private:
  std::shared_ptr<const Pieces> pieces_;
  bool heldout_;
  size_t begin_ = 0;
};

class TextFactory : public EnvironmentFactory {
 public:
  explicit TextFactory(std::shared_ptr<const Pieces> pieces) : pieces_(std::move(pieces)) {}
  std::unique_ptr<Environment> NewEnvironment() const override {
    return std::make_unique<TextEnvironment>(static_cast<int>(pieces_->length));
  }
  std::vector<std::string> player_names() const override { return {"writer"}; }
  size_t task_count() const override { return 1; }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const override {
    if (name != "writer") return UnknownName("player of text", name, player_names());
    OptionReader reader(StrCat("player ", name, " of text"), options);
    const bool heldout = reader.Choice("part", {"train", "heldout"}) == "heldout";
    QUERN_RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<Player>(std::make_unique<TextPlayer>(pieces_, heldout));
  }
  std::vector<std::string> vocabulary() const override {
    std::vector<std::string> all = pieces_->characters;
    all.emplace_back(kStart);
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
  }

 private:
  std::shared_ptr<const Pieces> pieces_;
};

// Bytes of the UTF-8 sequence that starts with `byte`; of what starts none, one.
size_t SequenceBytes(char byte) {
  const auto b = static_cast<unsigned char>(byte);
  return b >= 0xf0 ? 4 : b >= 0xe0 ? 3 : b >= 0xc0 ? 2 : 1;
}

}  // namespace

FactoryResult MakeTextFactory(const Options& options, const std::string& base_dir) {
  OptionReader reader("environment text", options);
  const std::string file = reader.Text("file", "");
  const int length = reader.Integer("length", 256, 1, 1 << 20);
  const double heldout = reader.Number("heldout", 0.1, 0.001, 0.9);
  QUERN_RETURN_IF_ERROR(reader.Finish());
  std::string text;
  if (file.empty()) {
    text = Assignments(kMadeUp, 0);
  } else {
    QUERN_ASSIGN_OR_RETURN(text, ReadFile(ResolvePath(base_dir, file)));
  }
  auto pieces = std::make_shared<Pieces>();
  for (size_t i = 0; i < text.size();) {
    const size_t bytes = SequenceBytes(text[i]);
    pieces->characters.push_back(text.substr(i, bytes));
    i += bytes;
  }
  const size_t count = pieces->characters.size();
  pieces->length = static_cast<size_t>(length);
  pieces->heldout = count - static_cast<size_t>(heldout * static_cast<double>(count));
  if (pieces->heldout < pieces->length || count - pieces->heldout < pieces->length)
    return InvalidArgument(StrCat("environment text: ", file, " has ", count,
                                  " characters, too few for pieces of length ", length, " from both of its parts"));
  return FactoryResult(std::make_shared<TextFactory>(std::move(pieces)));
}

}  // namespace quern
