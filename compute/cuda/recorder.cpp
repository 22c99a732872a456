#include "compute/cuda/recorder.h"

#include <algorithm>

#include "base/check.h"

namespace quern::cuda {

namespace {

constexpr size_t kSteps = 64;  // graphs that are kept
constexpr size_t kLeastArray = 256;

// Places are of few sizes, so that those behind an array stay where they are while it grows a little.
size_t PlaceOf(size_t bytes) {
  size_t place = kLeastArray;
  while (place < bytes) place *= 2;
  return place;
}

}  // namespace

void AppendBytes(const void* data, size_t bytes, std::vector<uint8_t>& to) {
  const size_t before = to.size();
  to.resize(before + bytes);
  std::memcpy(to.data() + before, data, bytes);
}

Recorder::~Recorder() {
  steps_.clear();
  if (device_ != nullptr) runtime_.Delete(device_);
}

void Recorder::Begin(uint64_t key) {
  QUERN_CHECK(!recording_ && entries_.empty(), "a step within a step");
  if (capacity_ < wanted_) {
    if (device_ != nullptr) runtime_.Delete(device_);
    capacity_ = wanted_;
    device_ = runtime_.New(static_cast<int64_t>(capacity_));
    host_.assign(capacity_, 0);
  }
  key_ = key;
  used_ = 0;
  arrays_.clear();
  recording_ = true;
  ++begun_;
}

const void* Recorder::Put(const void* data, size_t bytes) {
  for (const Array& array : arrays_)
    if (array.bytes == bytes && std::memcmp(host_.data() + array.offset, data, bytes) == 0)
      return static_cast<const uint8_t*>(device_) + array.offset;
  const size_t place = PlaceOf(bytes);
  if (used_ + place > capacity_) {
    wanted_ = std::max(wanted_, 2 * (used_ + place));
    return nullptr;
  }
  std::memcpy(host_.data() + used_, data, bytes);
  arrays_.push_back({used_, bytes});
  used_ += place;
  return static_cast<const uint8_t*>(device_) + arrays_.back().offset;
}

void Recorder::UploadArrays() { runtime_.Upload(device_, host_.data(), static_cast<int64_t>(used_)); }

void Recorder::QueueAll() {
  for (const Entry& entry : entries_) entry.queue();
}

void Recorder::Flush() {
  if (!recording_) return;
  recording_ = false;
  UploadArrays();
  QueueAll();
  entries_.clear();
}

bool Recorder::Matches(const Step& step) const {
  return std::equal(step.identities.begin(), step.identities.end(), entries_.begin(), entries_.end(),
                    [](const std::vector<uint8_t>& a, const Entry& b) { return a == b.identity; });
}

Recorder::Step& Recorder::StepOf(uint64_t key) {
  if (steps_.size() >= kSteps && !steps_.contains(key))
    steps_.erase(std::min_element(steps_.begin(), steps_.end(),
                                  [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
  Step& step = steps_[key];
  step.used = begun_;
  return step;
}

void Recorder::End() {
  if (!recording_) {  // flushed
    ++queued_;
    return;
  }
  recording_ = false;
  UploadArrays();
  Step& step = StepOf(key_);
  if (!entries_.empty() && Matches(step)) {
    if (step.graph == nullptr) step.graph = runtime_.Capture([this] { QueueAll(); });
    runtime_.Launch(*step.graph);
    ++replayed_;
  } else {
    QueueAll();
    step.graph.reset();
    step.identities.clear();
    for (Entry& entry : entries_) step.identities.push_back(std::move(entry.identity));
    ++queued_;
  }
  entries_.clear();
}

}  // namespace quern::cuda
