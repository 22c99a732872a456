#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "service/command.h"
#include "service/memory_plan.h"
#include "service/prepare.h"

namespace quern {

namespace {

struct PlanOptions {
  std::string job;
  std::vector<std::string> overrides;
  std::string output = "text";
};

}  // namespace

void AddPlanCommand(CommandSet& commands) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command =
      commands.app().add_subcommand("plan", "what memory and disk a job will take, without starting anything");
  command->add_option("job", options->job, "job file (YAML)")->required();
  command->add_option("overrides", options->overrides, "key.path=value, any number");
  command->add_option("-o,--output", options->output, "text or json")->check(CLI::IsMember({"text", "json"}));
  commands.SetBody(command, [options]() -> Result<int> {
    for (const std::string& text : options->overrides) {
      if (text.find('=') == std::string::npos || text[0] == '=')
        return UsageError("'" + text + "': an override is written key.path=value");
    }
    QUERN_ASSIGN_OR_RETURN(Job job, LoadJob(options->job, options->overrides));
    QUERN_RETURN_IF_ERROR(CheckJob(job));
    QUERN_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(job));
    std::printf("%s", (options->output == "json" ? MemoryPlanToJson(plan) : FormatMemoryPlan(plan)).c_str());
    return kExitOk;
  });
}

}  // namespace quern
