#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <memory>
#include <set>
#include <thread>

#include "base/deadline.h"
#include "base/file.h"
#include "base/strings.h"
#include "compute/cuda/cuda_device.h"
#include "service/command.h"
#include "transport/rpc.h"

namespace quern {

namespace {

// Milliseconds of a 4 KiB write and fdatasync: median and worst of 50.
Result<std::pair<double, double>> SyncSpeed(const std::string& folder) {
  const std::string path = JoinPath(folder, StrCat(".quern-doctor-", getpid()));
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return FromErrno(errno, path);
  unlink(path.c_str());
  const std::string block(4096, 'q');
  std::vector<double> times;
  for (int i = 0; i < 50; ++i) {
    const auto begin = Clock::now();
    if (write(fd, block.data(), block.size()) != static_cast<ssize_t>(block.size()) || fdatasync(fd) != 0) {
      const int error = errno;
      close(fd);
      return FromErrno(error, folder);
    }
    times.push_back(1e3 * SecondsSince(begin));
  }
  close(fd);
  std::sort(times.begin(), times.end());
  return std::make_pair(times[times.size() / 2], times.back());
}

std::set<std::string> CpuFlags(std::string& model) {
  std::ifstream info("/proc/cpuinfo");
  std::set<std::string> flags;
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && model.empty() && colon != std::string::npos) model = line.substr(colon + 2);
    if (line.starts_with("flags") && colon != std::string::npos)
      for (const std::string& flag : StrSplit(line.substr(colon + 2), ' ')) flags.insert(flag);
    if (!flags.empty()) break;
  }
  return flags;
}

class Doctor {
 public:
  void Say(bool good, const std::string& what, const std::string& fix = {}) {
    std::printf("%-4s %s%s\n", good ? "ok" : "FIX", what.c_str(), good || fix.empty() ? "" : (": " + fix).c_str());
    problems_ += good ? 0 : 1;
  }
  int problems() const { return problems_; }

 private:
  int problems_ = 0;
};

Result<int> RunDoctor(const std::string& folder) {
  Doctor doctor;
  std::string model;
  const std::set<std::string> flags = CpuFlags(model);
  std::vector<std::string> features;
  for (const char* flag : {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"})
    if (flags.contains(flag)) features.push_back(flag);
  doctor.Say(flags.contains("avx2") && flags.contains("fma"),
             StrCat("CPU ", model, ", ", std::thread::hardware_concurrency(), " cores: ", StrJoin(features, " ")),
             "matrix products fall back to plain code, many times slower");
  const CudaDevices gpus = FindCudaDevices(/*free_bytes=*/true);
  if (gpus.devices.empty()) doctor.Say(true, "no GPU: " + gpus.why_none);
  for (const CudaDevice& gpu : gpus.devices)
    doctor.Say(true, StrFormat("GPU %s, compute capability %d.%d, %s of %s free", gpu.name.c_str(), gpu.capability / 10,
                               gpu.capability % 10, HumanBytes(static_cast<double>(gpu.free_bytes)).c_str(),
                               HumanBytes(static_cast<double>(gpu.memory_bytes)).c_str()));
  const Result<uint64_t> space = DiskFreeBytes(folder);
  if (!space.ok()) return space.status();
  doctor.Say(*space > (uint64_t{1} << 30),
             StrCat("disk ", folder, ": ", HumanBytes(static_cast<double>(*space)), " free"),
             "a run needs about 1 GiB");
  const auto sync = SyncSpeed(folder);
  if (!sync.ok()) return sync.status();
  doctor.Say(sync->first < 20,
             StrFormat("disk %s: write and sync 4 KiB in %.2f ms (median), %.2f ms (worst of 50)", folder.c_str(),
                       sync->first, sync->second),
             "every insert waits for this; put output_dir on a faster disk");
  rlimit files = {};
  getrlimit(RLIMIT_NOFILE, &files);
  doctor.Say(files.rlim_cur >= 1024, StrCat("open files allowed: ", files.rlim_cur), "ulimit -n 4096");
  for (const int port : {7801, 7802}) {
    RpcServerOptions options;
    options.keys = GenerateCurveKeys();
    RpcServer server(options);
    const Status bound = server.Start(StrCat("tcp://127.0.0.1:", port));
    doctor.Say(bound.ok(), StrCat("port ", port, " (used with network.transport: tcp) is free"),
               bound.message() + "; set network.coordinator_port and network.replay_port");
  }
  return doctor.problems() == 0 ? kExitOk : kExitError;
}

}  // namespace

void AddInfoCommands(CommandSet& commands) {
  CLI::App& app = commands.app();
  CLI::App* version = app.add_subcommand("version", "print the version");
  commands.SetBody(version, []() -> Result<int> {
    std::printf("quern %s\n", QUERN_VERSION);
    return kExitOk;
  });

  auto topic = std::make_shared<std::string>();
  CLI::App* help = app.add_subcommand("help", "what quern can do; `quern help COMMAND` for one command");
  help->add_option("command", *topic, "a command");
  commands.SetBody(help, [&app, topic]() -> Result<int> {
    if (topic->empty()) {
      std::printf("%s", app.get_formatter()->make_help(&app, "quern", CLI::AppFormatMode::Normal).c_str());
      return kExitOk;
    }
    const auto named = app.get_subcommands([&](CLI::App* candidate) { return candidate->get_name() == *topic; });
    if (named.empty()) return UsageError("no command '" + *topic + "'");
    std::printf("%s", named[0]->help("quern").c_str());
    return kExitOk;
  });

  auto folder = std::make_shared<std::string>(".");
  CLI::App* doctor =
      app.add_subcommand("doctor", "look at this machine: CPU, disk sync speed, limits, ports; says what to fix");
  doctor->add_option("--dir", *folder, "folder that runs would be written to");
  commands.SetBody(doctor, [folder]() -> Result<int> { return RunDoctor(*folder); });
}

}  // namespace quern
