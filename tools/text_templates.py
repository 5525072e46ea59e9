"""Chat template goldens: conversations rendered by transformers.

    tools/text_templates.py DIRECTORY    renders other templates (DIRECTORY/*.jinja) for a comparison

Writes conversations.json and renderings.json beside the templates.
"""

import json
import pathlib
import sys

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather <now> & \u00abhere\u00bb, it's \u6674\u308c",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "the city"}, "items": {"type": "array", "items": {"type": "number"}},
        "unit": {"enum": ["c", "f"], "default": None}}, "required": ["city"]}}}
NOARGS = {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def call(name, arguments, number=0):
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(content, number=0):
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": content}


CONVERSATIONS = [
    {"messages": [user("q")]},
    {"messages": [user("q")], "add_generation_prompt": False},
    {"messages": [system("s1"), user("q1"), assistant("<think>\nr\n</think>\n\na1"), user("q2")]},
    {"messages": [user("q"), assistant("a</think>b</think>c"), user("q2")]},
    {"messages": [system("s1"), system("s2"), user("q")]},
    {"messages": [user("q"), system("late"), user("r")]},
    {"messages": [user("  padded \n"), assistant(" a "), user("\n")]},
    {"messages": [user(""), assistant(""), user("")]},
    {"messages": [user("\u4f60\u597d \U0001f600 na\u00efve <b>&amp;</b> \"q\" 'r' \\ {{ x }} {% if %}")]},
    {"messages": [system("sys"), user("a"), assistant("b"), user("c"), assistant("d")], "add_generation_prompt": False},
    {"messages": [user("weather?")], "tools": [WEATHER, NOARGS]},
    {"messages": [system("be brief"), user("weather?")], "tools": [WEATHER]},
    {"messages": [user("q"), assistant(None, tool_calls=[call("f", '{"a":1}')]), tool("r")]},
    {"messages": [user("q"), assistant("let me", tool_calls=[call("f", {"a": 1.0, "b": [True, None, 1e-7, "\u00e9<"]})]),
                  tool("r"), assistant("so"), user("ok")], "tools": [WEATHER]},
    {"messages": [user("q"), assistant("", tool_calls=[call("f", {"a": 1}), call("g", {}, 1), call("h", '{"x": "y"}', 2)]),
                  tool("r1"), tool("r2", 1), tool("r3", 2), assistant("done"), user("more")]},
    {"messages": [user("q"), assistant("", tool_calls=[call("f", {})]), tool('{"t": 21.5}'), user("and?")], "tools": [NOARGS]},
    {"messages": [user([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "u"}},
                        {"type": "text", "text": " here"}])]},
    {"messages": [user("q"), assistant("a", reasoning_content="because"), user("r")]},
    {"messages": [user("q"), assistant("a", reasoning="older name"), user("r")]},
    {"messages": [user("q"), assistant(None, tool_calls=[call("f", '{"a":1}'), call("g", "{}", 1), call("h", "{}", 2)]),
                  tool("r1"), tool("r2", 1), assistant("so <think>t</think>x"), user("more"),
                  assistant(None, tool_calls=[call("f", "{}", 3)]), tool("r3", 3), user("on")]},
    {"messages": [user("q")], "enable_thinking": False, "date_string": "1 May 2025", "thinking": True},
    {"messages": [{"role": "critic", "content": "boo"}, user("q")]},
    {"messages": [assistant("first"), assistant("second"), user("a"), user("b")]},
    {"messages": [user("q"), {"role": "assistant", "content": None}, user("r")]},
    {"messages": []},
]


def render(template, conversation):
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    arguments = {"add_generation_prompt": True, **conversation}
    messages = arguments.pop("messages")
    try:
        texts, _ = render_jinja_template(conversations=[messages], chat_template=template,
                                         bos_token=BOS, eos_token=EOS, **arguments)
        return {"text": texts[0]}
    except TemplateError as error:
        # raise_exception makes a plain TemplateError; undefined names and the like make subclasses.
        return {"raised": str(error)} if type(error) is TemplateError else {"error": repr(error)}
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        return {"error": repr(error)}


def make(directory, write):
    conversations = [{"add_generation_prompt": True, **c} for c in CONVERSATIONS]
    write("templates/conversations.json", conversations)
    write("templates/renderings.json", {
        path.stem: [render(path.read_text(encoding="utf-8"), c) for c in conversations]
        for path in sorted(directory.glob("*.jinja"))}, indent=1)


def main():
    directory = pathlib.Path(sys.argv[1])
    make(directory, lambda name, value, indent=None: (directory / pathlib.Path(name).name).write_text(
        json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
