#include "transport/aes_gcm.h"

#include <openssl/evp.h>
#include <openssl/rand.h>

#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace quern {

namespace {

static_assert(std::endian::native == std::endian::little);

std::array<uint8_t, 12> Nonce(uint64_t chunk) {
  std::array<uint8_t, 12> nonce{};
  std::memcpy(nonce.data(), &chunk, sizeof(chunk));
  return nonce;
}

}  // namespace

struct ChunkCipher::Impl {
  EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new();
  ~Impl() { EVP_CIPHER_CTX_free(context); }
};

ChunkCipher::ChunkCipher(const std::string& key, bool seal) : impl_(std::make_unique<Impl>()) {
  QUERN_CHECK(key.size() == kGcmKeyBytes && impl_->context != nullptr);
  const auto* bytes = reinterpret_cast<const uint8_t*>(key.data());
  QUERN_CHECK(EVP_CipherInit_ex(impl_->context, EVP_aes_256_gcm(), nullptr, bytes, nullptr, seal ? 1 : 0) == 1);
}

ChunkCipher::~ChunkCipher() = default;

void ChunkCipher::Seal(uint64_t chunk, uint64_t total, std::span<const uint8_t> plain, uint8_t* sealed) {
  const auto nonce = Nonce(chunk);
  int size = 0;
  EVP_CIPHER_CTX* const c = impl_->context;
  QUERN_CHECK(EVP_EncryptInit_ex(c, nullptr, nullptr, nullptr, nonce.data()) == 1 &&
              EVP_EncryptUpdate(c, nullptr, &size, reinterpret_cast<const uint8_t*>(&total), sizeof(total)) == 1 &&
              EVP_EncryptUpdate(c, sealed, &size, plain.data(), static_cast<int>(plain.size())) == 1 &&
              EVP_EncryptFinal_ex(c, sealed + plain.size(), &size) == 1 &&
              EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, kGcmTagBytes, sealed + plain.size()) == 1);
}

bool ChunkCipher::Open(uint64_t chunk, uint64_t total, std::span<uint8_t> sealed) {
  if (sealed.size() < kGcmTagBytes) return false;
  const auto nonce = Nonce(chunk);
  const size_t bytes = sealed.size() - kGcmTagBytes;
  int size = 0;
  EVP_CIPHER_CTX* const c = impl_->context;
  return EVP_DecryptInit_ex(c, nullptr, nullptr, nullptr, nonce.data()) == 1 &&
         EVP_DecryptUpdate(c, nullptr, &size, reinterpret_cast<const uint8_t*>(&total), sizeof(total)) == 1 &&
         EVP_DecryptUpdate(c, sealed.data(), &size, sealed.data(), static_cast<int>(bytes)) == 1 &&
         EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, kGcmTagBytes, sealed.data() + bytes) == 1 &&
         EVP_DecryptFinal_ex(c, sealed.data() + bytes, &size) == 1;
}

std::string RandomBytes(size_t count) {
  std::string bytes(count, '\0');
  QUERN_CHECK(RAND_bytes(reinterpret_cast<uint8_t*>(bytes.data()), static_cast<int>(count)) == 1);
  return bytes;
}

}  // namespace quern
