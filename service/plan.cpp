#include "service/plan.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/random.h"
#include "base/strings.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

// FNV-1a: equal names give equal seeds on every machine.
uint64_t NameHash(const std::string& name) {
  uint64_t hash = 1469598103934665603u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

Json MethodOptions(const Job& job, const std::string& method) {
  const Json resolved = Json::parse(JobToJson(job));
  return resolved.at(method == "q_sft" ? "qsft" : method);
}

std::string Label(const std::string& policy) {
  static const std::map<std::string, std::string> labels = {
      {"sft", "SFT"}, {"filtered_sft", "filtered SFT"}, {"q_sft", "Q-SFT"}, {kBaseModel, "untrained model"}};
  constexpr std::string_view suffix = "_online";
  if (policy.ends_with(suffix))
    return Label(policy.substr(0, policy.size() - suffix.size())) + " after the online phase";
  const auto it = labels.find(policy);
  return it == labels.end() ? policy : it->second;
}

class Planner {
 public:
  explicit Planner(const Job& job) : job_(job) {}

  Plan Make() {
    for (const std::string& player : job_.evaluate.players) EvaluatePlayer(player);
    OfflineData();
    if (!data_stages_.empty()) OfflineTraining();
    if (job_.online.rounds > 0) OnlineRounds();
    OrderRows();
    return std::move(plan_);
  }

 private:
  bool Wants(const std::string& method) const {
    return job_.method == method || std::find(job_.compare.begin(), job_.compare.end(), method) != job_.compare.end();
  }

  PlannedStage& Add(PlannedStage::Kind kind, const std::string& name, std::vector<std::string> after) {
    PlannedStage& stage = plan_.stages.emplace_back();
    stage.kind = kind;
    stage.name = name;
    stage.after = std::move(after);
    stage.seed = MixSeed(job_.seed, NameHash(name));
    return stage;
  }

  void OfflineData() {
    if (!job_.import_files.empty()) {
      Add(PlannedStage::Kind::kImport, "import", {}).files = job_.import_files;
      data_stages_.push_back("import");
    }
    std::map<std::string, int> seen;
    for (const CollectSection& collect : job_.collect) {
      const int repeat = ++seen[collect.player];
      std::string name = "collect:" + collect.player;
      if (repeat > 1) name += StrCat("-", repeat);
      PlannedStage& stage = Add(PlannedStage::Kind::kRollout, name, {});
      stage.policy = "player:" + collect.player;
      stage.player = collect.player;
      stage.player_options = collect.options;
      stage.episodes = static_cast<uint64_t>(collect.episodes);
      stage.tags = {"offline", stage.policy};
      data_stages_.push_back(name);
    }
    if (!data_stages_.empty()) plan_.rows.push_back({"data", "data mean", "offline"});
  }

  void OfflineTraining() {
    const bool filtered_from_sft = Wants("filtered_sft") && job_.filtered_sft.start_from == "sft";
    if (Wants("sft") || job_.method == "q_sft" || filtered_from_sft) Train("sft", "sft", {kBaseModel}, data_stages_, 0);
    if (Wants("filtered_sft")) {
      const std::vector<std::string> after = filtered_from_sft ? std::vector<std::string>{"sft"} : data_stages_;
      Train("filtered_sft", "filtered_sft", {filtered_from_sft ? std::string("sft") : std::string(kBaseModel)}, after,
            0);
    }
    if (Wants("q_sft")) {
      const std::string start = job_.qsft.start_from == "behaviour" ? "sft" : kBaseModel;
      Train("q_sft", "q_sft", {"sft", start}, {"sft"}, 0);
    }
    if (Wants("sft")) EvaluateWeights("sft", {"sft"});
    if (Wants("filtered_sft")) EvaluateWeights("filtered_sft", {"filtered_sft"});
    if (Wants("q_sft")) EvaluateWeights("q_sft", {"sft", "q_sft"});
    plan_.policy_line.push_back(job_.method == "q_sft" ? std::vector<std::string>{"sft", "q_sft"}
                                                       : std::vector<std::string>{job_.method});
  }

  void OnlineRounds() {
    if (plan_.policy_line.empty()) {
      EvaluateWeights(kBaseModel, {kBaseModel});
      plan_.policy_line.push_back({kBaseModel});
    }
    std::vector<std::string> newest_data = data_stages_;
    for (int64_t round = 1; round <= job_.online.rounds; ++round) {
      const std::string name = StrCat("online-", round);
      // The acting policy is at most max_staleness rounds behind: that version has to be there before play begins.
      const int64_t oldest = std::max<int64_t>(0, round - 1 - job_.online.max_staleness);
      std::vector<std::string> after = Trained(plan_.policy_line[static_cast<size_t>(oldest)]);
      if (round > 1) after.push_back(StrCat("online-", round - 1));
      PlannedStage& play = Add(PlannedStage::Kind::kRollout, name, after);
      play.policy = job_.method;
      play.newest = true;
      play.episodes = static_cast<uint64_t>(job_.online.episodes);
      play.tags = {"online", name};
      newest_data = {name};
      TrainRound(round, name, newest_data);
    }
    EvaluateWeights(job_.method + "_online", plan_.policy_line.back());
  }

  // Goes on with the method's models on the mix of offline and generated data.
  void TrainRound(int64_t round, const std::string& name, const std::vector<std::string>& data) {
    const std::vector<std::string> previous = plan_.policy_line.back();
    std::vector<std::string> after = Trained(previous);
    after.insert(after.end(), data.begin(), data.end());
    if (job_.method != "q_sft") {
      const std::string stage = name + ":" + job_.method;
      Train(stage, job_.method, {previous[0]}, after, round);
      plan_.policy_line.push_back({stage});
      return;
    }
    const std::string behaviour = name + ":sft";
    const std::string value = name + ":q_sft";
    const bool first_value = previous.size() < 2;
    const std::string start = !first_value                          ? previous[1]
                              : job_.qsft.start_from == "behaviour" ? behaviour
                                                                    : std::string(kBaseModel);
    Train(behaviour, "sft", {previous[0]}, after, round);
    Train(value, "q_sft", {behaviour, start}, {behaviour}, round);
    plan_.policy_line.push_back({behaviour, value});
  }

  static std::vector<std::string> Trained(const std::vector<std::string>& stages) {
    std::vector<std::string> out;
    for (const std::string& stage : stages)
      if (stage != kBaseModel) out.push_back(stage);
    return out;
  }

  // round 0: offline.
  void Train(const std::string& name, const std::string& method, std::vector<std::string> initial,
             std::vector<std::string> after, int64_t round) {
    PlannedStage& stage = Add(PlannedStage::Kind::kTrain, name, std::move(after));
    stage.method = method;
    stage.weights_name = method == "q_sft" ? "value" : method;
    stage.initial = std::move(initial);
    Json options = MethodOptions(job_, method);
    if (round > 0) {
      const OnlineTrainSection& online = method == "q_sft" ? job_.online.qsft
                                         : method == "sft" ? job_.online.sft
                                                           : job_.online.filtered_sft;
      if (online.max_steps >= 0) options["max_steps"] = online.max_steps;
      if (online.learning_rate >= 0) options["learning_rate"] = online.learning_rate;
      options["warmup_steps"] = online.warmup_steps;
    }
    options["weights_name"] = stage.weights_name;
    options["seed"] = stage.seed;
    options["without_tags"] = {kEvaluationTag};
    options["mix"] = round > 0;
    options["generated_share"] = job_.online.generated_share;
    options["generation_depth"] = round + 1;
    stage.steps = options["max_steps"];
    stage.options_json = options.dump();
  }

  PlannedStage& Evaluate(const std::string& policy, std::vector<std::string> after) {
    PlannedStage& stage = Add(PlannedStage::Kind::kRollout, "eval:" + policy, std::move(after));
    stage.policy = policy;
    stage.evaluation = true;
    stage.episodes = static_cast<uint64_t>(job_.evaluate.episodes);
    stage.seed = job_.evaluate.seed;  // the same tasks for every policy
    stage.tags = {kEvaluationTag, stage.name};
    plan_.rows.push_back({policy, Label(policy), stage.name});
    return stage;
  }

  void EvaluateWeights(const std::string& policy, const std::vector<std::string>& weights) {
    if (job_.evaluate.episodes == 0) return;
    Evaluate(policy, Trained(weights)).weights = weights;
  }

  void EvaluatePlayer(const std::string& player) {
    if (job_.evaluate.episodes == 0) return;
    Evaluate("player:" + player, {}).player = player;
    PlannedRow& row = plan_.rows.back();
    row.label = player == job_.evaluate.best_player ? "best known player (" + player + ")" : "player " + player;
  }

  // Data first, then the policies as they were made, players last.
  void OrderRows() {
    const auto rank = [](const PlannedRow& row) {
      return row.policy == "data" ? 0 : row.policy.starts_with("player:") ? 2 : 1;
    };
    std::stable_sort(plan_.rows.begin(), plan_.rows.end(),
                     [&](const PlannedRow& a, const PlannedRow& b) { return rank(a) < rank(b); });
  }

  const Job& job_;
  Plan plan_;
  std::vector<std::string> data_stages_;
};

}  // namespace

Plan MakePlan(const Job& job) { return Planner(job).Make(); }

Plan MakeEvaluationPlan(const PlannedStage& stage) {
  Plan plan;
  plan.stages.push_back(stage);
  plan.rows.push_back({stage.policy, Label(stage.policy), stage.tags.back()});
  return plan;
}

}  // namespace quern
