# Writes TO, a source with the bytes of FROM: quern::PageHtml().
file(READ ${FROM} bytes HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE ${TO} "#include <string_view>
namespace quern {
std::string_view PageHtml();
static const unsigned char kBytes[] = {${bytes}};
std::string_view PageHtml() { return {reinterpret_cast<const char*>(kBytes), sizeof(kBytes)}; }
}  // namespace quern
")
