#include "transport/curve_keys.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <cerrno>
#include <string_view>

#include "base/check.h"
#include "base/file.h"
#include "base/strings.h"
#include "transport/frames.h"

namespace quern {

namespace {

constexpr std::string_view kPublicSuffix = ".public";

std::string SecretPath(const std::string& folder, const std::string& role) {
  return JoinPath(folder, role + ".secret");
}
std::string PublicPath(const std::string& folder, const std::string& role) {
  return JoinPath(folder, role + std::string(kPublicSuffix));
}

std::string Trimmed(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  return text;
}

// Written beside and linked into place: another process never reads half a file, and the first creator wins.
Status CreateSecretFile(const std::string& path, const CurveKeys& keys) {
  const std::string temporary = StrCat(path, ".tmp-", getpid());
  unlink(temporary.c_str());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return FromErrno(errno, temporary);
  const std::string text = keys.public_key + "\n" + keys.secret_key + "\n";
  const bool written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  Status status = written ? Status() : FromErrno(errno, temporary);
  close(fd);
  if (status.ok() && link(temporary.c_str(), path.c_str()) != 0 && errno != EEXIST) status = FromErrno(errno, path);
  unlink(temporary.c_str());
  return status;
}

}  // namespace

CurveKeys GenerateCurveKeys() {
  char public_key[41];
  char secret_key[41];
  QUERN_CHECK(zmq_curve_keypair(public_key, secret_key) == 0, "libzmq was built without CURVE");
  return {public_key, secret_key};
}

Status CheckKey(const std::string& key, const std::string& whose) {
  uint8_t binary[32];
  if (key.size() != 40 || zmq_z85_decode(binary, key.c_str()) == nullptr)
    return InvalidArgument(whose + " key is not a CURVE key (40 characters of Z85)");
  return {};
}

Result<CurveKeys> LoadKeys(const std::string& folder, const std::string& role) {
  const std::string path = SecretPath(folder, role);
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return FromErrno(errno, path);
  if ((info.st_mode & 077) != 0)
    return FailedPrecondition(
        StrFormat("%s: mode %o, but a secret key must be readable by its owner only: chmod 600 it", path.c_str(),
                  info.st_mode & 0777));
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const std::vector<std::string> lines = StrSplit(text, '\n');
  if (lines.size() < 2) return DataLoss(path + ": expected two lines, the public and the secret key");
  CurveKeys keys{Trimmed(lines[0]), Trimmed(lines[1])};
  QUERN_RETURN_IF_ERROR(CheckKey(keys.public_key, path + ": the public"));
  QUERN_RETURN_IF_ERROR(CheckKey(keys.secret_key, path + ": the secret"));
  return keys;
}

Result<CurveKeys> LoadOrCreateKeys(const std::string& folder, const std::string& role) {
  if (!PathExists(folder)) {
    if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return FromErrno(errno, folder);
  }
  if (!PathExists(SecretPath(folder, role)))
    QUERN_RETURN_IF_ERROR(CreateSecretFile(SecretPath(folder, role), GenerateCurveKeys()));
  QUERN_ASSIGN_OR_RETURN(CurveKeys keys, LoadKeys(folder, role));
  if (!PathExists(PublicPath(folder, role)))
    QUERN_RETURN_IF_ERROR(WriteFileAtomic(PublicPath(folder, role), keys.public_key + "\n"));
  return keys;
}

Result<std::string> LoadPublicKey(const std::string& folder, const std::string& role) {
  const std::string path = PublicPath(folder, role);
  QUERN_ASSIGN_OR_RETURN(std::string text, ReadFile(path));
  std::string key = Trimmed(std::move(text));
  QUERN_RETURN_IF_ERROR(CheckKey(key, path + ": the public"));
  return key;
}

Result<std::vector<std::string>> LoadPublicKeys(const std::string& folder) {
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
  std::vector<std::string> keys;
  for (const std::string& name : names) {
    if (!name.ends_with(kPublicSuffix)) continue;
    QUERN_ASSIGN_OR_RETURN(std::string key, LoadPublicKey(folder, name.substr(0, name.size() - kPublicSuffix.size())));
    keys.push_back(std::move(key));
  }
  return keys;
}

}  // namespace quern
