#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "base/log.h"
#include "base/strings.h"
#include "service/command.h"
#include "service/event_log.h"
#include "service/join.h"
#include "service/roles.h"
#include "service/supervised.h"

namespace quern {

namespace {

struct RoleOptions {
  std::string run;
  uint32_t index = 0;
  std::string join;
  std::string directory;
};

}  // namespace

void AddRoleCommands(CommandSet& commands) {
  static constexpr std::pair<const char*, const char*> kRoles[] = {
      {kCoordinatorRole, "role: hands out a run's work"},
      {kReplayRole, "role: serves a run's replay store"},
      {kLearnerRole, "role: trains"},
      {kActorRole, "role: plays episodes"},
  };
  for (const auto& [role, description] : kRoles) {
    auto options = std::make_shared<RoleOptions>();
    CLI::App* command = commands.app().add_subcommand(role, description)->group("Roles (started by `quern run`)");
    CLI::Option* job = command->add_option("--job", options->run, "run directory");
    CLI::Option* index = command->add_option("--index", options->index, "number of this process among its role");
    if (std::string(role) == kActorRole) {
      command->add_option("--join", options->join, "take part from another host: the run's join token, or its file")
          ->excludes(job)
          ->needs(index)
          ->needs(command->add_option("--dir", options->directory, "with --join: where weights are kept"));
    } else {
      job->required();
    }
    const std::string name = role;
    commands.SetBody(command, [options, name]() -> Result<int> {
      const std::atomic<bool>& stop = InstallRoleSignals();
      SetLogRole(name == kActorRole ? StrCat(name, "-", options->index) : name);
      if (options->run.empty() && options->join.empty())
        return UsageError("give --job RUN_DIR, or --join TOKEN --dir DIR --index I");
      QUERN_ASSIGN_OR_RETURN(const Run run, options->join.empty()
                                                ? LoadRun(options->run)
                                                : JoinRun(options->join, options->directory, options->index, stop));
      const Status status = RunRole(name, options->index, run, stop);
      AppendPeakMemory(run, name, options->index);
      if (!status.ok() && !(stop.load() && status.code() == StatusCode::kCancelled)) {
        LeaveLastWords(status.message());
        if (WorthAnotherStart(status)) return status;
        std::fprintf(stderr, "quern: %s\n", status.message().c_str());
        return kExitHopeless;
      }
      return kExitOk;
    });
  }
}

}  // namespace quern
