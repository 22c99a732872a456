#include "transport/address.h"

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "base/file.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;
constexpr std::string_view kIpc = "ipc://";
constexpr std::string_view kTcp = "tcp://";
constexpr std::string_view kInproc = "inproc://";

// FNV-1a: short, stable across processes; no adversary chooses the folder.
uint64_t HashPath(std::string_view path) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : path) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

Status MakePrivateFolder(const std::string& folder) {
  if (!PathExists(folder)) {
    const std::string parent = std::filesystem::path(folder).parent_path();
    if (!parent.empty()) QUERN_RETURN_IF_ERROR(MakeDirectories(parent));
    if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return FromErrno(errno, folder);
  }
  struct stat info;
  if (stat(folder.c_str(), &info) != 0) return FromErrno(errno, folder);
  if (!S_ISDIR(info.st_mode)) return InvalidArgument(folder + ": not a folder; sockets need one");
  if (info.st_uid != geteuid())
    return FailedPrecondition(folder + ": belongs to another user; sockets need an own folder");
  if ((info.st_mode & 077) != 0)
    return FailedPrecondition(
        StrFormat("%s: mode %o lets other users at the socket in it: chmod 700 it, or take another folder",
                  folder.c_str(), info.st_mode & 0777));
  return {};
}

}  // namespace

bool IsAddress(std::string_view text) {
  return text.starts_with(kIpc) || text.starts_with(kTcp) || text.starts_with(kInproc);
}

Result<AddressKind> ParseAddress(const std::string& address) {
  if (address.starts_with(kIpc)) {
    const size_t length = address.size() - kIpc.size();
    if (length == 0) return InvalidArgument(address + ": the path is missing (ipc:///folder/name.sock)");
    if (length > kMaxSocketPath)
      return InvalidArgument(StrCat(address, ": the path has ", length, " bytes, a socket's name at most ",
                                    kMaxSocketPath, ": take a shorter folder"));
    return AddressKind::kIpc;
  }
  if (address.starts_with(kTcp)) {
    if (address.rfind(':') <= kTcp.size()) return InvalidArgument(address + ": expected tcp://HOST:PORT");
    return AddressKind::kTcp;
  }
  if (address.starts_with(kInproc) && address.size() > kInproc.size()) return AddressKind::kInproc;
  return InvalidArgument(address + ": not an address: expected ipc://PATH, tcp://HOST:PORT or inproc://NAME");
}

Result<std::string> IpcAddress(const std::string& folder, const std::string& name) {
  std::error_code error;
  const std::string absolute = std::filesystem::absolute(folder, error).lexically_normal();
  if (error) return FromErrno(error.value(), folder);
  const std::string file = name + ".sock";
  std::string place = absolute;
  if (JoinPath(place, file).size() > kMaxSocketPath) {
    const char* runtime = getenv("XDG_RUNTIME_DIR");
    const std::string leaf =
        StrFormat("quern-%u-%016llx", geteuid(), static_cast<unsigned long long>(HashPath(absolute)));
    place = JoinPath(runtime != nullptr && *runtime != 0 ? runtime : "/tmp", leaf);
  }
  QUERN_RETURN_IF_ERROR(MakePrivateFolder(place));
  std::string address = std::string(kIpc) + JoinPath(place, file);
  QUERN_RETURN_IF_ERROR(ParseAddress(address).status());
  return address;
}

Status PrepareIpcFolder(const std::string& address) {
  std::string folder = std::filesystem::path(address.substr(kIpc.size())).parent_path();
  return MakePrivateFolder(folder.empty() ? "." : folder);
}

}  // namespace quern
