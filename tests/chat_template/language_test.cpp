// The language in our own cases: what Jinja2 3.1 prints for them, set up as the transformers library does.
#include <gtest/gtest.h>

#include "model/chat_template/evaluator.h"
#include "tests/chat_template/render.h"

namespace quern {
namespace {

using Json = nlohmann::ordered_json;

struct Case {
  const char* text;
  const char* expected;
};

const Json& Context() {
  static const Json context = Json::parse(R"({
    "turns": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo <b>"}, {"role": "user", "content": "é中"}],
    "bag": {"b": 2, "a": 1, "items": 5, "n": null}, "three": 3, "half": 2.5, "words": "héllo wörld", "yes": true,
    "nil": null, "list": [3, 1, 2], "empty": []})");
  return context;
}

void Check(std::initializer_list<Case> cases) {
  for (const Case& item : cases) EXPECT_EQ(RenderText(item.text, Context()), item.expected) << item.text;
}

TEST(Language, Values) {
  Check({
      {"{{ true }} {{ none }} {{ 1.0 }} {{ 1e16 }} {{ 1e-5 }} {{ 0.1 + 0.2 }}",
       "True None 1.0 1e+16 1e-05 0.30000000000000004"},
      {R"({{ [none, true, 'a\'b', "a\"b'", "x\ny", missing] }})", R"([None, True, "a'b", 'a"b\'', 'x\ny', Undefined])"},
      {"{{ (1,) }}{{ () }}{{ {'a': (1, [2])} }}", "(1,)(){'a': (1, [2])}"},
      {R"({{ 'a' 'b' }}{{ "\x41\u00e9\101\q" }})", "abAéA\\q"},
      {"{{ 0x1f }} {{ 0b11 }} {{ 1_000 }} {{ 1.5e3 }}", "31 3 1000 1500.0"},
      {"{{ missing }}|{{ missing|length }}|{{ missing ~ 'a' }}|{{ missing is defined }}", "|0|a|False"},
      {"{{ [1] == (1,) }} {{ {'a': 1} == {'a': 1.0} }} {{ 1 == true }} {{ none == false }}", "False True True False"},
  });
}

TEST(Language, Arithmetic) {
  Check({
      {"{{ 7 // -2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % -2 }} {{ -7.5 // 2 }}", "-4 2 -2 -0.5 -4.0"},
      {"{{ 2 ** 10 }} {{ 2 ** -1 }} {{ 6 / 2 }} {{ -three ** 2 }} {{ 2 ** 3 ** 2 }}", "1024 0.5 3.0 9 64"},
      {"{{ 10 - 3 - 2 }} {{ 2 + 3 * 4 }} {{ 'a' ~ 1 ~ 2 }} {{ 'ab' * 2 }} {{ [1] * 2 + [3] }}",
       "5 14 a12 abab [1, 1, 3]"},
      {"{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ [1, 2] < [1, 3] }} {{ not three == 3 }}", "True False True False"},
      {"{{ 1 + 'a' }}", "error: t:1: unsupported operand types for +: 'int' and 'str'"},
      {"\n{{ 1 // 0 }}", "error: t:2: division by zero"},
      {"{{ 9223372036854775807 + 1 }}", "error: t:1: the result of 9223372036854775807 + 1 is beyond 64 bits"},
  });
}

TEST(Language, StringsCountCodePoints) {
  Check({
      {"{{ words[1] }}{{ words[-1] }}|{{ words[1:4] }}|{{ words[::-1] }}|{{ words|length }}", "éd|éll|dlröw olléh|11"},
      {"{{ words.upper() }} {{ words|title }} {{ 'ß'.upper() }} {{ 'ΑΣ'.lower() }}", "HÉLLO WÖRLD Héllo Wörld SS ας"},
      {"{{ 'a,b,c'.split(',', 1) }}{{ ' a  b '.split() }}{{ 'a b c'.rsplit(' ', 1) }}",
       "['a', 'b,c']['a', 'b']['a b', 'c']"},
      {"{{ 'xxaxx'.strip('x') }}{{ 'abc'.endswith(('x', 'bc')) }}{{ 'aXbX'.replace('X', '-', 1) }}", "aTruea-bX"},
      {"{{ 'abc'.find('c') }}{{ 'abc'.find('z') }}{{ 'a-b'.partition('-') }}{{ '-5'.zfill(4) }}",
       "2-1('a', '-', 'b')-005"},
      {"{{ '%s is %d or %05.2f' | format('a', 3, 2.5) }} {{ '%s-%s' % (1, 'b') }}", "a is 3 or 02.50 1-b"},
      {"{{ '{} {1} {x}'.format('a', 'b', x=3) }}", "a b 3"},
      {"{{ \"they're\".title() }} {{ \"they're here\"|title }}", "They'Re They're Here"},
  });
}

TEST(Language, Control) {
  Check({
      {"{% for t in turns if t.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ t.content }};{% endfor %}",
       "1/2Hi;2/2é中;"},
      {"{% for i in range(9) %}{% if i is odd %}{% continue %}{% endif %}{% if i > 5 %}{% break %}{% endif %}{{ i }}{% "
       "endfor %}",
       "024"},
      {"{% for k, v in bag.items() %}{{ k }}={{ v }},{% endfor %}", "b=2,a=1,items=5,n=None,"},
      {"{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% else %}none{% endfor %}", "123"},
      {"{% for i in empty %}x{% else %}none{% endfor %}", "none"},
      {"{% for t in turns %}{{ loop.previtem.role if not loop.first }}>{{ loop.nextitem.role if not loop.last }} {% "
       "endfor %}",
       ">assistant user>user assistant> "},
      {"{% set y = 1 %}{% for i in list %}{% set y = y + 1 %}{{ y }}{% endfor %}{{ y }}", "2221"},
      {"{% set y = 1 %}{% if true %}{% set y = 2 %}{% endif %}{{ y }}", "2"},
      {"{% set ns = namespace(a=[]) %}{% for i in list %}{% set ns.a = ns.a + [i] %}{% endfor %}{{ ns.a }}",
       "[3, 1, 2]"},
      {"{% set a %}block {{ three }}{% endset %}{{ a|upper }}{% set b | trim %} q {% endset %}{{ b }}", "BLOCK 3q"},
      {"{% with q = 5, r = three %}{{ q }}{{ r }}{% endwith %}{{ q }}", "53"},
      {"{% filter upper %}abc{{ three }}{% endfilter %}", "ABC3"},
      {"{{ 'a' if false else 'b' if yes else 'c' }}{{ 'd' if false }}", "b"},
  });
}

TEST(Language, Macros) {
  Check({
      {"{% macro m(a, b=2) %}{{ a }}{{ b }}{{ y }}{% endmacro %}{% set y = 5 %}{{ m(1) }} {{ m(1, b=3) }}", "125 135"},
      {"{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "54321"},
      {"{% macro m() %}{% for i in [1, 2] %}<{{ caller(i) }}>{% endfor %}{% endmacro %}{% call(v) m() %}{{ v * 2 }}{% "
       "endcall %}",
       "<2><4>"},
      {"{% macro m(a) %}[{{ a is defined }}]{% endmacro %}{{ m() }}{{ m(*[1]) }}{{ m(**{'a': 2}) }}",
       "[False][True][True]"},
      {"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "error: t:1: macro m takes at most 1 arguments, not 2"},
      {"{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "error: t:1: macro m has no parameter b"},
  });
}

TEST(Language, WhiteSpace) {
  Check({
      {"  {% if true %}\n   yes\n  {% endif %}\n  tail", "   yes\n  tail"},
      {"{%- if true %}\n   yes\n  {%+ endif %}\n  tail", "   yes\n    tail"},
      {"a\n  {# note #}\nb {# note #}\nc{#- note -#}  e", "a\nb ce"},
      {"x\r\n{{ 1 }}\n\n", "x\n1\n"},
      {"a  {{- 1 -}}  b {{ 2 }}  c", "a1b 2  c"},
      {"{% raw %}{{ no }}{% endraw %}|{%- raw -%}  {% a %}  {%- endraw -%}  x", "{{ no }}|{% a %}x"},
  });
}

TEST(Language, FiltersAndTests) {
  Check({
      {"{{ list|sort }}{{ list|sort(reverse=true) }}{{ list|map('string')|join('-') }}{{ list|sum }}{{ list|max }}",
       "[1, 2, 3][3, 2, 1]3-1-263"},
      {"{{ turns|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(', ') }}", "Hi, é中"},
      {"{{ turns|groupby('role')|map('first')|list }}{{ list|batch(2, 0)|list }}{{ [1, 1, 2]|unique|list }}",
       "['assistant', 'user'][[3, 1], [2, 0]][1, 2]"},
      {"{{ bag|dictsort }}{{ bag|items|list|length }}{{ bag['items'] }}",
       "[('a', 1), ('b', 2), ('items', 5), ('n', None)]45"},
      {"{{ 'x'|int(7) }}{{ '3.9'|int }}{{ '0x1f'|int(base=16) }}{{ 2.5|round }}{{ 2.567|round(2) }}{{ 3|round }}",
       "73312.02.573"},
      {"{{ 'a\nb\n\nc'|indent(2, true) }}|{{ 'foo bar baz qux'|truncate(9) }}|{{ '<a>'|e }}",
       "  a\n  b\n\n  c|foo...|&lt;a&gt;"},
      {"{{ '<'|safe + '>' }}{{ '<'|safe ~ '>' }}", "<&gt;<>"},
      {"{{ three is divisibleby 3 }}{{ bag is mapping }}{{ words is iterable }}{{ yes is integer }}{{ half is float }}",
       "TrueTrueTrueFalseTrue"},
      {"{{ 'a' is in ['a'] }}{{ three is not none }}{{ 'trim' is filter }}", "TrueTrueTrue"},
      {"{% if list|select('gt', 9) %}always true{% endif %}{% set g = list|select('odd') %}{{ g|list }}{{ g|list }}",
       "always true[3, 1][]"},
      {"{{ list|select('odd')|length }}", "error: t:1: object of type 'generator' has no length"},
  });
}

TEST(Language, Json) {
  Check({
      {R"({{ {'a': [], 'b': {}, 'c': 1.0, 'd': none, 1: "é</s>\n"}|tojson }})",
       R"({"a": [], "b": {}, "c": 1.0, "d": null, "1": "é</s>\n"})"},
      {"{{ {'a': [1, {'b': 2}]}|tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    {\n      \"b\": 2\n    }\n  ]\n}"},
      {"{{ {'b': 1, 'a': '😀'}|tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
       R"({"a":"\ud83d\ude00","b":1})"},
      {"{{ missing|tojson }}", "error: t:1: an object of type Undefined cannot be written as JSON"},
  });
}

TEST(Language, WhatIsWrongIsNamed) {
  Check({
      {"a\n{{ missing.b }}", "error: t:2: 'missing' is undefined"},
      {"{{ bag.zz.b }}", "error: t:1: 'dict' has no attribute 'zz'"},
      {"\n\n{{ raise_exception('roles\nmust alternate') }}",
       "error: t:3: the template refuses: roles\\nmust alternate"},
      {"{{ list.append(4) }}", "error: t:1: a template may not change a list; collect with + or a namespace"},
      {"{{ 1 | nothing }}", "error: t:1: no filter named 'nothing'"},
      {"{{ 1 is nothing }}", "error: t:1: no test named 'nothing'"},
      {"{% include 'x' %}", "error: t:1: {% include %} is not supported in chat templates"},
      {"{% wat %}", "error: t:1: unknown tag {% wat %}"},
      {"x\n{% if a %}y", "error: t:2: the template ends before {% endif %}"},
      {"{{ (1 }}", "error: t:1: unexpected }"},
      {"{{ 'abc }}", "error: t:1: a string is not closed"},
      {"{% break %}", "error: t:1: {% break %} outside of a loop"},
  });
}

TEST(Language, GenerationBlocksAreLocated) {
  const auto parsed =
      jinja::Template::Parse("a{% generation %}bc{% endgeneration %}d{% generation %}e{% endgeneration %}", "t");
  ASSERT_TRUE(parsed.ok());
  const auto rendering = (*parsed)->Render(Json::object(), {});
  ASSERT_TRUE(rendering.ok());
  EXPECT_EQ(rendering->text, "abcde");
  EXPECT_EQ(rendering->generated, (std::vector<std::pair<size_t, size_t>>{{1, 3}, {4, 5}}));
}

TEST(Language, Time) {
  std::tm now{};
  now.tm_year = 124;
  now.tm_mon = 6;
  now.tm_mday = 26;
  EXPECT_EQ(RenderText("{{ strftime_now('%d %b %Y') }}", nullptr, {.now = now}), "26 Jul 2024");
}

TEST(Language, JsonDialect) {
  const jinja::RenderOptions options{.dialect = jinja::Dialect::kJson};
  EXPECT_EQ(RenderText("{{ true }}{{ [1, 'a', none] }}{{ 'n' + 1 }}{{ null is none }}", nullptr, options),
            "true[1, \"a\", null]n1true");
  EXPECT_EQ(RenderText("{{ bag.items }}{{ bag.items() }}", Json{{"bag", {{"items", 5}}}}, options),
            "error: t:1: 'int' object is not callable");
}

// Functions of the host: a context from JSON has none, so that they are set on the evaluator.
TEST(Language, HostFunctions) {
  jinja::Evaluator evaluator({.dialect = jinja::Dialect::kJson});
  const auto add = [](jinja::Evaluator& e, const jinja::Arguments& arguments) {
    return arguments.positional.size() == 2 ? e.Binary("+", arguments.positional[0], arguments.positional[1])
                                            : jinja::Value(int64_t{0});
  };
  evaluator.SetVariable("add", evaluator.MakeFunction("add", 1, add));
  const jinja::Body body =
      jinja::ParseTemplate("{{ add(3, -1) }}{{ add() }}{{ add is callable }}{{ add(add('a', 'b'), 'c') }}");
  EXPECT_EQ(evaluator.Run(body).text, "20trueabc");
}

}  // namespace
}  // namespace quern
