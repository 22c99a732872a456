// Hostile templates end with one line of error, soon.
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <thread>

#include "tests/chat_template/render.h"

namespace quern {
namespace {

using Json = nlohmann::ordered_json;

std::string Repeat(std::string_view text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

// A tenth of the default steps, so that the tests are short too.
void ExpectRefused(const std::string& text, const Json& context = nullptr) {
  const auto begin = std::chrono::steady_clock::now();
  jinja::RenderOptions options;
  options.limits.steps /= 10;
  const std::string rendered = RenderText(text, context, options);
  EXPECT_TRUE(rendered.starts_with("error: t:")) << text.substr(0, 200) << " -> " << rendered.substr(0, 200);
  EXPECT_EQ(rendered.find('\n'), std::string::npos);
  EXPECT_LT(rendered.size(), 700u);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60)) << text.substr(0, 200);
}

TEST(Limits, Time) {
  const std::string loops = "{% for a in range(99999) %}{% for b in range(99999) %}";
  ExpectRefused(loops + "{% endfor %}{% endfor %}");
  ExpectRefused(loops + "{{ 'aaaaaaaaaaaaaaaaaaaaaa'.find('ab') }}{% endfor %}{% endfor %}");
  ExpectRefused("{{ range(100001) }}");
  ExpectRefused("{{ range(1, 9223372036854775807) }}");
  // A search that looks at every byte of the needle at every position.
  ExpectRefused("{% set a = 'a' * 9000000 %}{{ ('a' * 4000000 ~ 'b') in a }}");
  ExpectRefused("{% set a = 'a' * 9000000 %}{{ a.replace('a' * 4000000 ~ 'b', 'c') }}");
  ExpectRefused("{% set a = 'a' * 9000000 %}{{ a.strip('b' * 1000000) }}");
  // Values that share their parts are small in memory and large to look at.
  ExpectRefused(
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}");
  ExpectRefused(
      "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] "
      "%}"
      "{% endfor %}{{ n.x == n.y }}");
  ExpectRefused("{{ 'a' | replace('', 'b' * 16000000) | replace('', 'c') | length }}");
}

TEST(Limits, Memory) {
  ExpectRefused("{{ 'a' * 9223372036854775807 }}");
  ExpectRefused("{{ [1] * 9223372036854775807 }}");
  ExpectRefused("{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}");
  ExpectRefused("{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}");
  ExpectRefused("{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}");
  ExpectRefused("{{ 'aaaa'|replace('a', 'b' * 9000000) }}");
  ExpectRefused("{{ 'a'.center(9223372036854775807) }}");
  ExpectRefused("{{ '%999999999d' % 1 }}");
  ExpectRefused("{{ [1]|batch(9223372036854775807, 0)|list }}");
  ExpectRefused("{{ [[1]]|tojson(indent='x' * 16000000)|length }}");
  ExpectRefused("{{ 'a\n' * 4000000 | indent('y' * 1000) }}{{ ('a\n' * 400000) | indent('y' * 1000) }}");
  ExpectRefused(std::string((1 << 20) + 1, 'x'));
}

TEST(Limits, Depth) {
  ExpectRefused("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}");
  ExpectRefused("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}");
  ExpectRefused("{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}");
  ExpectRefused("{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}");
  ExpectRefused("{% set ns = namespace(x={}) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}");
  ExpectRefused("{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x.index] %}{% endfor %}");
  ExpectRefused(
      "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [[ns.x]|select] %}{% endfor %}");
  ExpectRefused(
      "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% for j in [n.x] %}{% set n.x = [loop] %}{% endfor "
      "%}{% endfor %}");
  for (const auto& [open, close] : {std::pair("(", ")"),
                                    {"[", "]"},
                                    {"{1:", "}"},
                                    {"-", ""},
                                    {"not ", ""},
                                    {"x[", "]"},
                                    {"f(", ")"},
                                    {"1 if ", ""},
                                    {"1 is in ", ""},
                                    {"1 if 1 else ", ""}})
    ExpectRefused("{{ " + Repeat(open, 5000) + "1" + Repeat(close, 5000) + " }}");
  for (const char* operation : {" + 1", " ~ 1 - 1", " and 1", " or 1", "|abs", "()", "[0]", ".a", " is odd", " ** 1"})
    ExpectRefused("{{ 1" + Repeat(operation, 20000) + " }}");
  ExpectRefused(Repeat("{% if 1 %}", 5000) + Repeat("{% endif %}", 5000));
  ExpectRefused(Repeat("{% for i in [1] %}", 5000) + Repeat("{% endfor %}", 5000));
  ExpectRefused("{% set " + Repeat("(", 5000) + "a" + Repeat(")", 5000) + " = 1 %}");
  std::string deep = Repeat("[", 1000) + Repeat("]", 1000);
  ExpectRefused("{{ x }}", Json{{"x", Json::parse(deep)}});
}

// What is deep or long but honest renders.
TEST(Limits, HonestTemplatesPass) {
  EXPECT_EQ(RenderText("{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{% endif %}.{% endmacro %}{{ f(50) }}"),
            std::string(51, '.'));
  EXPECT_EQ(RenderText("{{ 'a'" + Repeat(" ~ 'a'", 2000) + " }}"), std::string(2001, 'a'));
  std::string elif = "{% if x == 0 %}0";
  for (int i = 1; i < 1000; ++i) elif += "{% elif x == " + std::to_string(i) + " %}" + std::to_string(i);
  EXPECT_EQ(RenderText(elif + "{% endif %}", Json{{"x", 999}}), "999");
  Json messages = Json::array();
  for (int i = 0; i < 5000; ++i) messages.push_back({{"role", "user"}, {"content", std::string(1000, 'x')}});
  EXPECT_EQ(RenderText("{% for m in messages %}{{ m.role + ': ' + m.content | trim + '\n' }}{% endfor %}",
                       Json{{"messages", messages}})
                .size(),
            5000u * 1007);
}

// Cycles through namespaces, closures and loops are no leaks (AddressSanitizer's build sees them).
TEST(Limits, CyclesAreFreed) {
  EXPECT_EQ(
      RenderText("{% set ns = namespace() %}{% set ns.a = ns %}{% set ns.b = [ns] %}{{ ns }}{{ ns.a.a.b == ns.b }}"),
      "<Namespace>True");
  EXPECT_EQ(
      RenderText("{% set ns = namespace() %}{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}{% set ns.m = m %}"
                 "{% set ns.l = loop %}{% endfor %}{{ ns.m() }}{{ ns.l.index }}"),
      "12");
  EXPECT_EQ(RenderText("{% set ns = namespace() %}{% macro o() %}{% set ns.c = caller %}{% endmacro %}{% call o() "
                       "%}x{% endcall %}{{ ns.c() }}"),
            "x");
}

// Random token soup: never a crash, always a text or one line. Small limits keep every case short.
TEST(Limits, RandomTemplates) {
  const std::vector<std::string> pieces = {"{{ ",
                                           " }}",
                                           "{% ",
                                           " %}",
                                           "{%- ",
                                           " -%}",
                                           "{# ",
                                           " #}",
                                           "if ",
                                           "else",
                                           "elif ",
                                           "endif",
                                           "for ",
                                           "in ",
                                           "endfor",
                                           "set ",
                                           "endset",
                                           "macro m(a, b=1)",
                                           "endmacro",
                                           "call m(1)",
                                           "call(q) m(x)",
                                           "endcall",
                                           "filter upper",
                                           "endfilter",
                                           "generation",
                                           "endgeneration",
                                           "break",
                                           "continue",
                                           "with ",
                                           "endwith",
                                           "raw",
                                           "endraw",
                                           "x",
                                           "y",
                                           "loop",
                                           "loop.index",
                                           "messages",
                                           "ns",
                                           "m(x)",
                                           "caller()",
                                           "namespace(a=x)",
                                           "ns.a",
                                           " = ",
                                           "range(9)",
                                           "dict(a=1)",
                                           "[",
                                           "]",
                                           "(",
                                           ")",
                                           "{",
                                           "}",
                                           ",",
                                           ":",
                                           ".",
                                           "|",
                                           "tojson",
                                           "map('upper')",
                                           "select",
                                           "join(',')",
                                           "sort",
                                           "length",
                                           "first",
                                           "replace('a','b')",
                                           "indent(2)",
                                           "is ",
                                           "not ",
                                           "defined",
                                           "none",
                                           "string",
                                           "+",
                                           "-",
                                           "*",
                                           "/",
                                           "//",
                                           "%",
                                           "**",
                                           "~",
                                           "==",
                                           "<",
                                           "and ",
                                           "or ",
                                           "'a'",
                                           "\"é\"",
                                           "1",
                                           "2.5",
                                           "-3",
                                           "'%s'",
                                           "true",
                                           "none",
                                           " ",
                                           "\n",
                                           "text",
                                           "[1, 2]",
                                           "{'a': [1]}",
                                           "x.items()",
                                           "x['a']",
                                           "[::-1]",
                                           "[1:]",
                                           ".split('a')",
                                           "**{'a': 1}",
                                           "*[1]"};
  std::mt19937_64 random(20261123);
  const Json context = {{"x", {{"a", 1}, {"b", {1, "zwei", nullptr}}}},
                        {"y", "words of text"},
                        {"messages", {{{"role", "user"}, {"content", "c"}}}}};
  jinja::RenderOptions options;
  options.limits.steps = 20000;
  options.limits.work_bytes = 1 << 20;
  options.limits.output_bytes = 1 << 16;
  int rendered = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    const int statements = static_cast<int>(random() % 4) + 1;
    for (int s = 0; s < statements; ++s) {
      const bool block = random() % 2 == 0;
      text += block ? "{% " : "{{ ";
      for (uint64_t n = random() % 8 + 1; n > 0; --n) text += pieces[random() % pieces.size()];
      text += block ? " %}" : " }}";
    }
    options.dialect = i % 2 == 0 ? jinja::Dialect::kJinja2 : jinja::Dialect::kJson;
    const std::string out = RenderText(text, context, options);
    if (out.starts_with("error: ")) {
      EXPECT_EQ(out.find('\n'), std::string::npos) << text;
    } else {
      ++rendered;
    }
    EXPECT_EQ(RenderText(text, context, options), out) << text;
  }
  EXPECT_GT(rendered, 100);
}

// One template, many threads.
TEST(Limits, RendersOnManyThreads) {
  const auto parsed = jinja::Template::Parse("{% for m in messages %}{{ m.content|tojson }}{% endfor %}", "t");
  ASSERT_TRUE(parsed.ok());
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      const Json context = {{"messages", {{{"content", t}}, {{"content", "x"}}}}};
      for (int i = 0; i < 200; ++i) right += (*parsed)->Render(context, {})->text == std::to_string(t) + "\"x\"";
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 800);
}

}  // namespace
}  // namespace quern
