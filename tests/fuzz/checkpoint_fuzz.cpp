#include <xxhash.h>

#include "base/log.h"
#include "base/strings.h"
#include "learner/checkpoints.h"
#include "tests/fuzz/scratch.h"

// A manifest (its hash put right, so that more than the hash is looked at), and an array's bytes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  SetLogLevel(LogLevel::kError);
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string folder = Scratch() + "/stage/step-3";
  QUERN_CHECK(MakeDirectories(folder).ok());
  const std::string manifest(NextPart(input));
  const XXH128_hash_t hash = XXH3_128bits(manifest.data(), manifest.size());
  const std::string line = StrFormat("%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                                     static_cast<unsigned long long>(hash.low64));
  Put(folder + "/manifest.json", size % 8 == 0 ? manifest : line + "\n" + manifest);
  Put(folder + "/a", input);
  std::vector<uint8_t> a(16, 7);
  const CheckpointArray arrays[] = {{"a", a}};
  StageCheckpoints checkpoints({.directory = Scratch(), .every_steps = 1}, "stage", "key");
  const auto mark = checkpoints.Load(arrays);
  QUERN_CHECK(mark.ok(), mark.status().ToString());
  if (mark->has_value())
    QUERN_CHECK(std::string_view(reinterpret_cast<const char*>(a.data()), a.size()) == input);
  else
    QUERN_CHECK(a == std::vector<uint8_t>(16, 7));
  return 0;
}
