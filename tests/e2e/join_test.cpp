// An actor that shares no disk with the run: everything it has comes over the wire.
#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using Json = nlohmann::json;

std::vector<std::string> FetchedVersions(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error))
    if (entry.is_directory()) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

bool WaitFor(const std::function<bool()>& what, std::chrono::seconds limit = std::chrono::seconds(60)) {
  const auto until = std::chrono::steady_clock::now() + limit;
  while (!what()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

TEST(Join, AnActorOfAnotherHostPlaysTheWholeJob) {
  const QuernProcess::Folder folder, elsewhere;
  const int port = 20000 + (getpid() * 7) % 20000;
  std::vector<std::string> arguments =
      RunArguments(folder, {"network.transport=tcp", StrCat("network.coordinator_port=", port),
                            StrCat("network.replay_port=", port + 1), "actors=0", "online.max_staleness=0"});
  QuernProcess run(folder, arguments);
  const std::string token = folder.File("run/keys/join.token");
  ASSERT_TRUE(WaitFor([&] { return PathExists(token); }));
  EXPECT_EQ(std::filesystem::status(token).permissions() & std::filesystem::perms::all,
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  // The environment's file is the same on both hosts; nothing else is.
  QuernProcess actor(elsewhere, {"actor", "--join", *ReadFile(token), "--dir", elsewhere.File("work"), "--index", "7"});
  const auto ended = run.Wait(std::chrono::seconds(120));
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto left = actor.Wait(std::chrono::seconds(60));
  EXPECT_EQ(left.code, 0) << left.err;
  // The untrained model, and every version that was played.
  const std::vector<std::string> fetched = FetchedVersions(elsewhere.File("work/run/weights"));
  for (const std::string name : {"base-0-", "sft-1-", "filtered_sft-2-", "value-3-"})
    EXPECT_TRUE(std::any_of(fetched.begin(), fetched.end(), [&](const auto& one) { return one.starts_with(name); }))
        << name << "\n"
        << left.err;
  for (const std::string& name : fetched) EXPECT_FALSE(name.ends_with(".part")) << name;
  // The same table as with actors that map the run's files.
  const QuernProcess::Folder here;
  const auto local = QuernProcess::Run(here, RunArguments(here, {"actors=1", "online.max_staleness=0"}));
  ASSERT_EQ(local.code, 0) << local.err;
  Json a = Json::parse(*ReadFile(folder.File("run/result.json")))["table"];
  Json b = Json::parse(*ReadFile(here.File("run/result.json")))["table"];
  for (Json* table : {&a, &b})
    for (Json& row : *table)
      for (auto it = row.begin(); it != row.end();)
        it = it.key().find("second") != std::string::npos ? row.erase(it) : std::next(it);
  EXPECT_EQ(a, b);
}

TEST(Join, TokensThatAreNone) {
  const QuernProcess::Folder folder;
  const auto join = [&](const std::string& token) {
    return QuernProcess::Run(folder, {"actor", "--join", token, "--dir", folder.File("w"), "--index", "1"});
  };
  for (const std::string token : {"qjoin1", "qjoin1zz", "qjoin100112233", "/no/such/file"}) {
    const auto ended = join(token);
    EXPECT_NE(ended.code, 0) << token;
    EXPECT_TRUE(ended.err.starts_with("quern: ")) << ended.err;
  }
  EXPECT_EQ(QuernProcess::Run(folder, {"actor", "--index", "1"}).code, 2);
}

}  // namespace
}  // namespace quern
