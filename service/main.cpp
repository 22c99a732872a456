#include <CLI/CLI.hpp>

#include "base/strings.h"
#include "service/command.h"
#include "service/help.h"

int main(int argc, char** argv) {
  CLI::App app("Quern: reinforcement learning for language models, from offline data to a better policy", "quern");
  quern::SetHelpFormat(app);
  app.require_subcommand(1);
  quern::CommandSet commands(app);
  quern::AddRunCommand(commands);
  quern::AddPlanCommand(commands);
  quern::AddResumeCommand(commands);
  quern::AddQueueCommands(commands);
  quern::AddUiCommand(commands);
  quern::AddPolicyCommands(commands);
  quern::AddModelCommands(commands);
  quern::AddServeCommand(commands);
  quern::AddChatCommand(commands);
  quern::AddReplayCommand(commands);
  quern::AddRoleCommands(commands);
  quern::AddInfoCommands(commands);
  quern::AddExamples(app);
  if (argc > 1 && argv[1][0] != '-' &&
      app.get_subcommands([&](CLI::App* c) { return c->check_name(argv[1]); }).empty()) {
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands([](CLI::App*) { return true; }))
      names.push_back(command->get_name());
    const std::string nearest = quern::NearestName(argv[1], names);
    return quern::UsageError(std::string("no command '") + argv[1] + "'" +
                             (nearest.empty() ? "" : "; did you mean '" + nearest + "'?"));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return quern::UsageError(error.what());
  }
  return commands.Run();
}
