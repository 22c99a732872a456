#include "service/jsonl.h"

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iostream>

#include "base/strings.h"

namespace quern {

namespace {

template <typename Json>
Status ForEachLine(const std::string& path, const std::function<Status(const Json& row)>& row) {
  std::ifstream file;
  if (path != "-") {
    file.open(path);
    if (!file) return FromErrno(errno, path);
  }
  std::istream& in = path == "-" ? std::cin : file;
  uint64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Json object = Json::parse(line, nullptr, false);
    Status status = object.is_object() ? row(object) : InvalidArgument("not a JSON object");
    if (!status.ok()) return Status(status.code(), StrCat(path, ":", number, ": ", status.message()));
  }
  return in.bad() ? FromErrno(errno, path) : Status();
}

}  // namespace

Status ForEachJsonLine(const std::string& path, const std::function<Status(const nlohmann::json& row)>& row) {
  return ForEachLine(path, row);
}

Status ForEachOrderedJsonLine(const std::string& path,
                              const std::function<Status(const nlohmann::ordered_json& row)>& row) {
  return ForEachLine(path, row);
}

double NineDigits(double value) { return std::strtod(StrFormat("%.9g", value).c_str(), nullptr); }

}  // namespace quern
