"""Renders the real chat templates with the reference engine (python3-jinja2, set up as the transformers library does) and
writes the length and the FNV-1a hash of every text to reference.json: python3 make_reference.py SHARED_CHAT_TEMPLATES"""
import datetime
import glob
import json
import os
import sys

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("inner"), [], [], body).set_lineno(line)

    def inner(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda text: datetime.datetime(2024, 7, 26, 13, 5, 9).strftime(text)
    return env


def fnv(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def render(template, context):
    try:
        return environment().from_string(template).render(**context)
    except Exception as error:  # whatever the template does wrong
        return error


def contexts(folder):
    here = os.path.dirname(os.path.abspath(__file__))
    out = {"own/" + name: value for name, value in json.load(open(os.path.join(here, "contexts.json"))).items()}
    for path in sorted(glob.glob(os.path.join(folder, "contexts", "*.json"))):
        out["shared/" + os.path.basename(path)] = json.load(open(path))
    return out


def main(folder):
    here = os.path.dirname(os.path.abspath(__file__))
    out = {}
    paths = sorted(glob.glob(os.path.join(folder, "*.jinja")) + glob.glob(os.path.join(folder, "tests_files", "*.jinja")))
    for path in paths:
        for name, context in contexts(folder).items():
            text = render(open(path).read(), context)
            key = os.path.relpath(path, folder) + " " + name
            out[key] = {"error": True} if isinstance(text, Exception) else {"bytes": len(text.encode()), "fnv": fnv(text)}
    with open(os.path.join(here, "reference.json"), "w") as file:
        file.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in out.items()) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1])
