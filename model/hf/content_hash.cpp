#include "model/hf/content_hash.h"

#include <xxhash.h>

#include <memory>

#include "base/file.h"
#include "base/strings.h"

namespace quern {

Result<std::string> DirectoryContentHash(const std::string& dir) {
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(dir));
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
  XXH3_128bits_reset(state.get());
  bool any = false;
  for (const std::string& name : names) {
    if (name != "config.json" && !name.ends_with(".safetensors") && !name.ends_with(".safetensors.index.json"))
      continue;
    QUERN_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(JoinPath(dir, name)));
    // The terminating zero keeps name and contents apart.
    XXH3_128bits_update(state.get(), name.c_str(), name.size() + 1);
    XXH3_128bits_update(state.get(), file.bytes().data(), file.bytes().size());
    any = true;
  }
  if (!any) return NotFound(dir + ": no config.json or safetensors file");
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return StrFormat("%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                   static_cast<unsigned long long>(hash.low64));
}

}  // namespace quern
