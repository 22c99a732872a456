// The Grafana dashboard names what is exported, and is as Grafana's own linter wants it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file.h"
#include "base/strings.h"
#include "transport/metric_list.h"

namespace quern {
namespace {

nlohmann::json Dashboard() {
  return nlohmann::json::parse(*ReadFile(JoinPath(getenv("QUERN_SOURCE_DIR"), "deploy/grafana/quern.json")));
}

// Names of metrics in an expression: words that begin as ours or the process's own do.
std::vector<std::string> NamesIn(const std::string& expression) {
  std::vector<std::string> names;
  for (size_t at = 0; at < expression.size();) {
    const size_t end =
        expression.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", at);
    const std::string word = expression.substr(at, end == std::string::npos ? end : end - at);
    if (word.starts_with("quern_") || word.starts_with("process_")) names.push_back(word);
    at = word.empty() ? at + 1 : at + word.size();
  }
  return names;
}

TEST(Dashboard, EveryMetricIsExportedAndEveryRoleIsThere) {
  std::map<std::string, const Metric*> known;
  for (const Metric* metric : AllMetrics()) known[StrCat("quern_", metric->name)] = metric;
  std::set<std::string> roles;
  const auto dashboard = Dashboard();
  for (const auto& panel : dashboard["panels"]) {
    if (panel["type"] == "row") continue;
    for (const auto& target : panel["targets"]) {
      const std::vector<std::string> names = NamesIn(target["expr"]);
      EXPECT_FALSE(names.empty()) << target["expr"];
      for (std::string name : names) {
        if (name.starts_with("process_")) continue;
        const bool histogram = name.ends_with("_bucket") || name.ends_with("_sum") || name.ends_with("_count");
        if (histogram && !known.contains(name)) name.resize(name.rfind('_'));
        EXPECT_TRUE(known.contains(name)) << name << " is not exported";
        if (!known.contains(name)) continue;
        const Metric::Kind kind = known[name]->kind;
        EXPECT_EQ(histogram, kind != Metric::kCounter && kind != Metric::kGauge) << target["expr"];
        roles.insert(known[name]->role);
      }
    }
  }
  EXPECT_EQ(roles, (std::set<std::string>{kRoleActor, kRoleCoordinator, kRoleLearner, kRoleReplay, kRoleServer}));
}

TEST(Dashboard, RulesOfTheLinter) {
  const auto dashboard = Dashboard();
  EXPECT_FALSE(dashboard.contains("id"));
  EXPECT_FALSE(dashboard["uid"].get<std::string>().empty());
  EXPECT_GE(dashboard["schemaVersion"], 36);
  EXPECT_EQ(dashboard["editable"], false);
  std::set<std::string> variables;
  for (const auto& variable : dashboard["templating"]["list"]) variables.insert(variable["name"].get<std::string>());
  EXPECT_TRUE(variables.contains("datasource") && variables.contains("run") && variables.contains("instance"));
  std::set<std::pair<int, int>> places;
  for (const auto& panel : dashboard["panels"]) {
    const auto& place = panel["gridPos"];
    EXPECT_TRUE(places.emplace(place["x"].get<int>(), place["y"].get<int>()).second)
        << panel["title"] << " lies over another panel";
    if (panel["type"] == "row") continue;
    EXPECT_FALSE(panel["title"].get<std::string>().empty());
    EXPECT_FALSE(panel["description"].get<std::string>().empty()) << panel["title"];
    EXPECT_FALSE(panel["fieldConfig"]["defaults"]["unit"].get<std::string>().empty()) << panel["title"];
    EXPECT_EQ(panel["datasource"]["uid"], "${datasource}") << panel["title"];
    for (const auto& target : panel["targets"]) {
      const std::string expression = target["expr"];
      EXPECT_NE(expression.find("run=~\"$run\""), std::string::npos) << expression;
      EXPECT_NE(expression.find("instance=~\"$instance\""), std::string::npos) << expression;
      for (const char* function : {"rate(", "increase("}) {
        if (expression.find(function) == std::string::npos) continue;
        EXPECT_NE(expression.find("[$__rate_interval]"), std::string::npos) << expression;
      }
      EXPECT_EQ(std::count(expression.begin(), expression.end(), '('),
                std::count(expression.begin(), expression.end(), ')'))
          << expression;
    }
  }
}

}  // namespace
}  // namespace quern
