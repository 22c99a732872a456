#include "tests/bench/bench_util.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <sstream>
#include <thread>

namespace quern::bench {

namespace {

// Seconds all cores together were not idle, the time the hypervisor kept for others included.
double BusySeconds() {
  std::ifstream stat("/proc/stat");
  std::string label;
  double user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0;
  stat >> label >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal;
  return (user + nice + system + irq + softirq + steal) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

std::string CpuName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

}  // namespace

void PrintHeader(int argc, char** argv) {
  std::printf("# command:");
  for (int i = 0; i < argc; ++i) {
    const std::string word = argv[i];
    std::printf(" %s", i == 0 ? word.substr(word.rfind('/') + 1).c_str() : word.c_str());
  }
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof(date), "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  std::printf("\n# %s, %u cores, %s\n", CpuName().c_str(), std::thread::hardware_concurrency(), date);
}

double OwnCpuSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::string LoadAverage() {
  double load[3] = {};
  if (getloadavg(load, 3) < 0) return "unknown";
  char text[64];
  std::snprintf(text, sizeof(text), "%.2f %.2f %.2f", load[0], load[1], load[2]);
  return text;
}

std::string Text(const Spread& s) {
  if (s.max == 0) return "-";
  char text[64];
  std::snprintf(text, sizeof(text), "%7.1f (%.0f-%.0f)", s.median, s.min, s.max);
  return text;
}

OthersWatch::OthersWatch() : begin_wall_(Seconds()), begin_busy_(BusySeconds()), begin_own_(OwnCpuSeconds()) {}

double OthersWatch::Share() const {
  const double all = (Seconds() - begin_wall_) * std::max(1u, std::thread::hardware_concurrency());
  return all <= 0 ? 0 : std::clamp((BusySeconds() - begin_busy_ - (OwnCpuSeconds() - begin_own_)) / all, 0.0, 1.0);
}

std::string Flag(int argc, char** argv, const std::string& name, const std::string& fallback) {
  const std::string prefix = "--" + name + "=";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind(prefix, 0) == 0) return word.substr(prefix.size());
  }
  return fallback;
}

bool HasFlag(int argc, char** argv, const std::string& name) {
  for (int i = 1; i < argc; ++i) {
    if (argv[i] == "--" + name) return true;
  }
  return false;
}

}  // namespace quern::bench
