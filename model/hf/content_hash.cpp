#include "model/hf/content_hash.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // XXH3 by the widest vectors that the CPU has: the same numbers
#endif

#include <cerrno>
#include <memory>

#include "base/file.h"
#include "base/strings.h"

namespace quern {

namespace {

// Read, not mapped: a piece is hashed where it was put, in the cache, and no page of the file is mapped for it.
Status HashFile(const std::string& path, XXH3_state_t* state) {
  constexpr size_t kPiece = size_t{256} << 10;
  const std::unique_ptr<uint8_t[]> piece = std::make_unique_for_overwrite<uint8_t[]>(kPiece);
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FromErrno(errno, path);
  ssize_t size;
  while ((size = read(fd, piece.get(), kPiece)) > 0 || (size < 0 && errno == EINTR))
    if (size > 0) XXH3_128bits_update(state, piece.get(), static_cast<size_t>(size));
  const Status status = size < 0 ? FromErrno(errno, path) : Status();
  close(fd);
  return status;
}

}  // namespace

Result<std::string> DirectoryContentHash(const std::string& dir) {
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(dir));
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
  XXH3_128bits_reset(state.get());
  bool any = false;
  for (const std::string& name : names) {
    if (name != "config.json" && !name.ends_with(".safetensors") && !name.ends_with(".safetensors.index.json"))
      continue;
    // The terminating zero keeps name and contents apart.
    XXH3_128bits_update(state.get(), name.c_str(), name.size() + 1);
    QUERN_RETURN_IF_ERROR(HashFile(JoinPath(dir, name), state.get()));
    any = true;
  }
  if (!any) return NotFound(dir + ": no config.json or safetensors file");
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return StrFormat("%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                   static_cast<unsigned long long>(hash.low64));
}

Status CheckContentHash(const std::string& dir, const std::string& published) {
  if (published.empty()) return {};
  QUERN_ASSIGN_OR_RETURN(const std::string hash, DirectoryContentHash(dir));
  if (hash == published) return {};
  return DataLoss(StrCat(dir, ": content hash ", hash, ", published as ", published, ": its files were changed"));
}

}  // namespace quern
