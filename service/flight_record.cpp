#include "service/flight_record.h"

#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/strings.h"

namespace quern {

namespace {

std::string UtcNow() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  return StrFormat("%s.%03dZ", text, static_cast<int>(ms));
}

}  // namespace

void FlightRecord::Add(const std::string& what) {
  if (!entries_.empty() && entries_.back().what == what) {
    ++entries_.back().times;
    entries_.back().time = UtcNow();
    return;
  }
  if (entries_.size() == most_) entries_.pop_front();
  entries_.push_back({UtcNow(), what, 1});
}

std::string FlightRecord::ToJson() const {
  auto json = nlohmann::ordered_json::array();
  for (const Entry& entry : entries_)
    json.push_back({{"time", entry.time}, {"what", entry.what}, {"times", entry.times}});
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace quern
