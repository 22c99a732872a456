#include "model/hf/safetensors.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/shared_data.h"

namespace quern {
namespace {

std::string File(const std::string& header, size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i)));
  return file + header + std::string(data_bytes, '\0');
}

Result<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensors({reinterpret_cast<const uint8_t*>(file.data()), file.size()}, "x.safetensors");
}

void ExpectError(const std::string& file, const std::string& part) {
  const auto header = Parse(file);
  ASSERT_FALSE(header.ok()) << part;
  EXPECT_NE(header.status().message().find(part), std::string::npos) << header.status().ToString();
  EXPECT_EQ(header.status().message().find("x.safetensors: "), 0u) << header.status().ToString();
  EXPECT_EQ(header.status().message().find('\n'), std::string::npos);
}

std::string OneTensor(const std::string& info, size_t data_bytes) { return File("{\"a\":" + info + "}", data_bytes); }

TEST(Safetensors, ReadsNamesShapesAndOffsets) {
  const auto header =
      Parse(File(R"({"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},"__metadata__":{"k":"v"},)"
                 R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4],"note":{"x":[1,{"y":2}]}}}   )",
                 28));
  ASSERT_TRUE(header.ok()) << header.status().ToString();
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].dtype, "BF16");
  EXPECT_EQ(header->tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header->tensors[1].begin, 4);
  EXPECT_EQ(header->metadata.at("k"), "v");
}

TEST(Safetensors, AcceptsEmptyScalarAndNullMetadata) {
  EXPECT_TRUE(Parse(File("{}", 0)).ok());
  EXPECT_TRUE(Parse(File("{\"__metadata__\":null}", 0)).ok());
  EXPECT_TRUE(Parse(File("  {}  ", 0)).ok());
  EXPECT_TRUE(Parse(OneTensor(R"({"dtype":"F32","shape":[],"data_offsets":[0,4]})", 4)).ok());
  EXPECT_TRUE(Parse(OneTensor(R"({"dtype":"F32","shape":[2,0],"data_offsets":[0,0]})", 0)).ok());
  EXPECT_TRUE(Parse(OneTensor(R"({"dtype":"F4","shape":[2],"data_offsets":[0,1]})", 1)).ok());
}

TEST(Safetensors, RefusesBrokenLengths) {
  ExpectError("", "too short");
  ExpectError(std::string("\x01\0\0", 3), "too short");
  ExpectError(std::string(8, '\xff') + "{}", "over the limit");
  std::string long_header = File("{}", 0);
  long_header[0] = 3;
  ExpectError(long_header, "exceeds the file");
  ExpectError(File("", 0), "not valid JSON");
}

TEST(Safetensors, RefusesBrokenJson) {
  ExpectError(File("\xff\xfe{}", 0), "not valid JSON");
  ExpectError(File("{\"\xff\":1}", 0), "not valid JSON");
  ExpectError(File("{\"a\":", 0), "not valid JSON");
  ExpectError(File("{} x", 0), "not valid JSON");
  ExpectError(File("[]", 0), "unexpected array");
  ExpectError(File("7", 0), "wrong type");
  ExpectError(File("{\"a\":1}", 0), "tensor a: ");
  ExpectError(File("{\"__metadata__\":{\"k\":1}}", 0), "\"k\" must be a string");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[1]})", 4), "must all be there");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4), "wrong type");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})", 4), "wrong type");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[[1]],"data_offsets":[0,4]})", 4), "unexpected array");
  ExpectError(OneTensor(R"({"dtype":32,"shape":[1],"data_offsets":[0,4]})", 4), "\"dtype\" has the wrong type");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,4]})", 4), "two numbers");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", 4), "two numbers");
}

TEST(Safetensors, RefusesUnknownTypesAndDuplicates) {
  ExpectError(OneTensor(R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})", 4), "unknown dtype \"F31\"");
  const std::string info = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  ExpectError(File("{\"a\":" + info + ",\"a\":" + info + "}", 0), "tensor a: the name appears twice");
  ExpectError(OneTensor(R"({"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]})", 0),
              "\"dtype\" appears twice");
}

TEST(Safetensors, RefusesBadLayouts) {
  const auto two = [](const char* a, const char* b, size_t bytes) {
    return File(std::string("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":") + a +
                    "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + b + "}}",
                bytes);
  };
  EXPECT_TRUE(Parse(two("[4,8]", "[0,4]", 8)).ok());
  ExpectError(two("[0,4]", "[2,6]", 6), "tensor b: overlaps");
  ExpectError(two("[0,4]", "[5,9]", 9), "tensor b: leaves a hole");
  ExpectError(two("[1,5]", "[5,9]", 9), "tensor a: leaves a hole");
  ExpectError(two("[0,4]", "[4,8]", 7), "truncated");
  ExpectError(two("[0,4]", "[4,8]", 9), "the file holds 9");
  ExpectError(two("[4,0]", "[4,8]", 8), "end before they begin");
  ExpectError(two("[0,5]", "[5,9]", 9), "takes 4 bytes");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})", 4), "overflows");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]})", 4), "too large");
  ExpectError(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]})", 4), "too large");
  ExpectError(OneTensor(R"({"dtype":"F4","shape":[3],"data_offsets":[0,1]})", 1), "no whole bytes");
}

TEST(Safetensors, WrittenFileReadsBackAndIsDeterministic) {
  ScratchFolder folder;
  Tensor a(DType::kF32, 3, 5), b(DType::kF32, 1, 7);
  for (int i = 0; i < 15; ++i) a.Row<float>(0)[i] = 0.37f * static_cast<float>(i) - 1.0f;
  for (int i = 0; i < 7; ++i) b.Row<float>(0)[i] = static_cast<float>(i);
  const auto write = [&](const std::string& path, std::vector<NamedTensor> tensors, std::optional<DType> dtype) {
    ASSERT_TRUE(WriteSafetensors(path, std::move(tensors), dtype).ok());
  };
  write(folder.File("1"), {{"w", a}, {"bias", b}, {"part", a.view().Cols(1, 2)}}, {});
  write(folder.File("2"), {{"part", a.view().Cols(1, 2)}, {"bias", b}, {"w", a}}, {});
  write(folder.File("3"), {{"w", a}}, DType::kBf16);
  const std::string first = *ReadFile(folder.File("1"));
  EXPECT_EQ(first, *ReadFile(folder.File("2")));

  const auto header = Parse(first);
  ASSERT_TRUE(header.ok()) << header.status().ToString();
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->buffer_offset % 64, 0);
  ASSERT_EQ(header->tensors.size(), 3u);
  EXPECT_EQ(header->tensors[0].shape, (std::vector<int64_t>{7}));
  const auto* data = reinterpret_cast<const float*>(first.data() + header->buffer_offset);
  EXPECT_EQ(data[header->tensors[1].begin / 4 + 2], a.Row<float>(1)[1]);
  EXPECT_EQ(data[header->tensors[2].begin / 4 + 14], a.Row<float>(0)[14]);

  const std::string third = *ReadFile(folder.File("3"));
  const auto bf16 = Parse(third);
  ASSERT_TRUE(bf16.ok());
  EXPECT_EQ(bf16->tensors[0].dtype, "BF16");
  uint16_t bits;
  std::memcpy(&bits, third.data() + bf16->buffer_offset + 2 * 4, 2);
  EXPECT_EQ(bits, Bf16(a.Row<float>(0)[4]).bits);
}

TEST(Safetensors, RefusesToWriteDuplicates) {
  ScratchFolder folder;
  Tensor a(DType::kF32, 1, 1);
  EXPECT_FALSE(WriteSafetensors(folder.File("x"), {{"a", a}, {"a", a}}).ok());
  EXPECT_FALSE(PathExists(folder.File("x")));
}

// A real file whose writer padded the header without counting the padding: the reference refuses the five bytes too.
TEST(Safetensors, RefusesUncountedPaddingOfAnotherWriter) {
  QUERN_NEED_SHARED_DATA("vectors/safetensors/las7_tiny.safetensors");
  std::string file = *ReadFile(SharedData("vectors/safetensors/las7_tiny.safetensors"));
  ExpectError(file, "end at byte 32768 of the data, but the file holds 32773");
  file.erase(8 + 75, 5);
  const auto header = Parse(file);
  ASSERT_TRUE(header.ok()) << header.status().ToString();
  EXPECT_EQ(header->tensors[0].name, "test.weight.0");
  EXPECT_EQ(header->tensors[0].shape, (std::vector<int64_t>{64, 128}));
  for (size_t cut = 1; cut < file.size(); cut += 997) EXPECT_FALSE(Parse(file.substr(0, file.size() - cut)).ok());
}

}  // namespace
}  // namespace quern
