#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// What every benchmark prints and watches.

namespace quern::bench {

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Spread {
  double median = 0, min = 0, max = 0;
};

inline Spread Summarise(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2, values.front(), values.back()};
}

// Prints the command line, the CPU, the number of cores and the date (UTC) as comment lines.
void PrintHeader(int argc, char** argv);

// User and system time of this process.
double OwnCpuSeconds();

// The load averages of 1, 5 and 15 minutes.
std::string LoadAverage();

// "median (min-max)", or "-" for nothing measured.
std::string Text(const Spread& spread);

// CPU time that other processes and the hypervisor took since construction, as a share of all cores' time. Figures
// taken while it is above some per cent are not to be trusted.
class OthersWatch {
 public:
  OthersWatch();
  double Share() const;

 private:
  double begin_wall_, begin_busy_, begin_own_;
};

// "--name=value" or "--name" of the command line, else `fallback`.
std::string Flag(int argc, char** argv, const std::string& name, const std::string& fallback);
bool HasFlag(int argc, char** argv, const std::string& name);

}  // namespace quern::bench
