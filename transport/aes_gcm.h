#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace quern {

inline constexpr size_t kGcmKeyBytes = 32;
inline constexpr size_t kGcmTagBytes = 16;

// AES-256-GCM of numbered chunks under one key: the nonce is the chunk's number, so a key must only ever see one text
// for each number. `total`, the length of everything, is authenticated with each chunk. Not thread-safe.
class ChunkCipher {
 public:
  ChunkCipher(const std::string& key, bool seal);
  ChunkCipher(const ChunkCipher&) = delete;
  ChunkCipher& operator=(const ChunkCipher&) = delete;
  ~ChunkCipher();

  // Writes plain.size() bytes and the tag behind them.
  void Seal(uint64_t chunk, uint64_t total, std::span<const uint8_t> plain, uint8_t* sealed);
  // In place: `sealed` ends with its tag. False: somebody else wrote it, or bytes of it changed on the way.
  bool Open(uint64_t chunk, uint64_t total, std::span<uint8_t> sealed);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// From the system's generator.
std::string RandomBytes(size_t count);

}  // namespace quern
