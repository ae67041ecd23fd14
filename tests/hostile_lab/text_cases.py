"""Configs, tokenizers and chat templates that lie, cost too much or ask for code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_lab.folders import CONFIG, TEMPLATE, Case, good, put, tokenizer

CONFIG_FILE, TOKENIZER, TEMPLATE_FILE = "config.json", "tokenizer.json", "chat_template.jinja"
HUGE_NAME = "x" * 1_000_000


def _config(name: str, rule: str | None, **changes: Any) -> Case:
    return _raw_config(name, rule, json.dumps({**CONFIG, **changes}).encode())


def _raw_config(name: str, rule: str | None, content: bytes) -> Case:
    return Case(
        name=f"config: {name}",
        build=lambda folder, marker: put(good(folder), CONFIG_FILE, content),
        rule=rule,
        file=CONFIG_FILE if rule not in (None, "*", "tensor") else "",
    )


def _config_values() -> list[Case]:
    return [
        _config("auto_map without a file", "*", auto_map={"AutoModel": "evil--repo.Evil"}),
        _config(
            "_attn_implementation_internal",
            "_attn_implementation_internal",
            _attn_implementation_internal="a/b",
        ),
        _config("attn_implementation from the hub", "*", _attn_implementation="evil/kernels:run"),
        _config("trust_remote_code", "trust_remote_code", trust_remote_code=True),
        _config("custom_pipelines", "custom_pipelines", custom_pipelines={"text": {"impl": "evil.Evil"}}),
        _config("quantization_config", "quantization_config", quantization_config={"quant_method": "gptq"}),
        _config("adapters", "adapter", adapter={"path": "../x"}),
        _config("vocab 2^40", "vocab_size", vocab_size=1 << 40),
        _config("layers 10^9", "n_layer", n_layer=10**9),
        _config("heads 10^12", "n_head", n_head=10**12),
        _config("positions 10^12", "n_positions", n_positions=10**12, n_ctx=10**12),
        _config("n_inner 2^50", "n_inner", n_inner=1 << 50),
        _config("width 10^300", "n_embd", n_embd=10**300),
        _config("all at the limit", "", n_layer=1000, n_embd=1 << 16, n_head=1 << 16, vocab_size=1 << 20),
        _config("layers 0", "n_layer", n_layer=0),
        _config("heads 0", "n_head", n_head=0),
        _config("heads that do not divide", "divisible", n_head=3),
        _config("width -8", "n_embd", n_embd=-8),
        _config("width a text", "n_embd", n_embd="8"),
        _config("width true", "n_embd", n_embd=True),
        _config("width 8.0", "n_embd", n_embd=8.0),
        _config("width null", "n_embd", n_embd=None),
        _config("width a list", "n_embd", n_embd=[8]),
        _config("width NaN", "NaN", n_embd=float("nan")),
        _config("epsilon Infinity", "Infinity", layer_norm_epsilon=float("inf")),
        _config("epsilon 0", "layer_norm_eps", layer_norm_epsilon=0.0),
        _config("epsilon a text", "layer_norm_eps", layer_norm_epsilon="1e-5"),
    ]


def _config_texts() -> list[Case]:
    text = json.dumps(CONFIG)
    return [
        _raw_config("epsilon 1e999", "too large", text.replace("1e-05", "1e999").encode()),
        _raw_config("a number of 5000 digits", "limit", text.replace("262", "9" * 5000).encode()),
        _config("unknown key", "n_layers", n_layers=1),
        _config("unknown key of 1 MB", "over the limit", **{HUGE_NAME + "y" * 100_000: 1}),
        _config("unknown key of 0.9 MB", "xxx", **{HUGE_NAME[:900_000]: 1}),
        _config("unknown key with terminal codes", "x1b", **{"\x1b[2J\nwafergpt: loaded": 1}),
        _config("another architecture", "model_type", model_type="llama"),
        _config("an architecture of 0.9 MB", "model_type", model_type=HUGE_NAME[:900_000]),
        _config("an architecture with a line break", "model_type", model_type="x\nwafergpt: loaded"),
        _config("an architecture that is a list", "model_type", model_type=["gpt2"] * 1000),
        _config("another class", "architectures", architectures=["EvilForCausalLM"]),
        _config("activation exec", "activation_function", activation_function="exec"),
        _config("activation of 0.9 MB", "activation_function", activation_function=HUGE_NAME[:900_000]),
        _config("cross attention", "add_cross_attention", add_cross_attention=True),
        _config("an untied head", "tie_word_embeddings", tie_word_embeddings=False),
        _raw_config("50 MB", "over the limit", b" " * (50 << 20)),
        _raw_config("10^5 deep", "nested", b'{"a":' * 100_000),
        _raw_config("0.9 MB of empty lists", "", b'{"x":[' + b"[]," * 299_000 + b"0]}"),
        _raw_config("duplicate key", "appears twice", text.replace("{", '{"n_layer":2,', 1).encode()),
        _raw_config("a list", "not a JSON object", b"[]"),
        _raw_config("a text", "not a JSON object", b'"gpt2"'),
        _raw_config("empty", "not valid JSON", b""),
        _raw_config("an empty object", "model_type", b"{}"),
        _raw_config("UTF-16", "not valid JSON", text.encode("utf-16")),
        _raw_config("a byte order mark", "not valid JSON", b"\xef\xbb\xbf" + text.encode()),
        _raw_config("half a surrogate", "surrogate", text.replace("gelu_new", "\\ud800").encode()),
        _raw_config("YAML", "not valid JSON", b"!!python/object/apply:os.system ['true']"),
    ]


def _tokenizer(name: str, rule: str | None, edit: Callable[[dict[str, Any]], object]) -> Case:
    def build(folder: Path, marker: Path) -> None:
        form = tokenizer()
        content = edit(form)
        put(good(folder), TOKENIZER, content if isinstance(content, bytes) else form)

    return Case(name=f"tokenizer: {name}", build=build, rule=rule, file=TOKENIZER if rule else "")


def _add(content: str, token_id: Any = 262, **flags: Any) -> Callable[[dict[str, Any]], object]:
    token = {"id": token_id, "content": content, "special": True, **flags}
    return lambda form: form["added_tokens"].append(token)


def _vocab(**entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda form: form["model"]["vocab"].update(entries)


def _with_one_more() -> dict[str, Any]:
    form = tokenizer()
    _vocab(xy=262)(form)
    return form


def _slow(name: str, rule: str | None, file: str, content: Any) -> Case:
    """vocab.json and merges.txt (and added_tokens.json), one of them spoiled."""

    def build(folder: Path, marker: Path) -> None:
        form = tokenizer()
        put(good(folder, without=(TOKENIZER,)), "vocab.json", form["model"]["vocab"])
        put(folder, "merges.txt", "#version: 0.2\n" + "\n".join(form["model"]["merges"]) + "\n")
        if content is not None:
            put(folder, file, content)

    return Case(name=f"tokenizer files: {name}", build=build, rule=rule, file=file if rule else "")


def _large_merges(form: dict[str, Any]) -> bytes:
    """Ten million merges do not fit in 16 MiB; this is what does."""
    form["model"]["merges"] = []
    return json.dumps(form).replace('"merges": []', '"merges": [' + '"t h",' * 2_700_000 + '""]').encode()


def _many_merges(form: dict[str, Any]) -> None:
    form["model"]["merges"] = ["t h"] * 300_000


def _many_entries(form: dict[str, Any]) -> None:
    form["model"]["vocab"].update({f"{n:x}": 262 + n for n in range(200_000)})


def _tokenizer_parts() -> list[Case]:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    replace = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}
    return [
        _tokenizer("exponential regex", "Split", lambda f: f.update(pre_tokenizer=split)),
        _tokenizer(
            "a sequence of splits", "Sequence", lambda f: f.update(pre_tokenizer={"type": "Sequence"})
        ),
        _tokenizer("a normaliser with a regex", "normalises", lambda f: f.update(normalizer=replace)),
        _tokenizer(
            "a precompiled normaliser", "normalises", lambda f: f.update(normalizer={"type": "Precompiled"})
        ),
        _tokenizer("a decoder with a regex", "decoder", lambda f: f.update(decoder=replace)),
        _tokenizer(
            "a merge that makes its part", "not an ordinary", lambda f: f["model"]["merges"].append("th in")
        ),
        _tokenizer(
            "a merge cycle by an empty part", "not a pair", lambda f: f["model"]["merges"].append("th ")
        ),
        _tokenizer("a merge of three", "not a pair", lambda f: f["model"]["merges"].append("t h e")),
        _tokenizer("a merge of 1 MB", "not a pair", lambda f: f["model"]["merges"].append("x" * 1_000_000)),
        _tokenizer("a merge twice", "appears twice", lambda f: f["model"]["merges"].append("t h")),
        _tokenizer(
            "merges that make the end of text",
            "ordinary",
            lambda f: f["model"]["merges"].append(["<", "|endoftext|>"]),
        ),
        _tokenizer(
            "10^7 merges", "over the limit", lambda f: b'{"model":{"merges":[' + b'"a b",' * 10**7 + b"0]}}"
        ),
        _tokenizer("16 MB of merges", "more values", _large_merges),
        _tokenizer("300,000 merges", "over the limit", _many_merges),
        _tokenizer("200,000 entries", "over the limit", _many_entries),
    ]


def _tokenizer_entries() -> list[Case]:
    return [
        _tokenizer("an id past the end", "count from 0", _vocab(er=262)),
        _tokenizer("an id of 2^40", "count from 0", _vocab(er=1 << 40)),
        _tokenizer("a negative id", "count from 0", _vocab(er=-1)),
        _tokenizer("an id twice", "same id", _vocab(er=0)),
        _tokenizer("an id that is a text", "count from 0", _vocab(er="261")),
        _tokenizer("an id that is a float", "count from 0", _vocab(er=261.0)),
        Case(
            name="tokenizer: more ids than the model",
            build=lambda folder, marker: put(good(folder), TOKENIZER, _with_one_more()),
            rule="do not belong together",
        ),
        _tokenizer("an added token that text makes", "ordinary", _add("the", 258)),
        _tokenizer("an added token that is a byte", "byte entries", _add("a", 64)),
        _tokenizer("the end of text under another id", "added twice", _add("<|endoftext|>", 262)),
        _tokenizer("an added token with a taken id", "same id", _add("<|system|>", 256)),
        _tokenizer("an added token far out", "count from 0", _add("<|system|>", 10**9)),
        _tokenizer("an added token with a line break", "cannot be a special", _add("a\nb")),
        _tokenizer("an added token of 1 MB", "cannot be a special", _add("x" * 1_000_000)),
        _tokenizer("an added word", "not a special token", _add("word", special=False)),
        _tokenizer(
            "10^5 added tokens",
            "more values",
            lambda f: [_add(f"<{n}>", 262 + n)(f) for n in range(10**5)],
        ),
    ]


def _tokenizer_forms() -> list[Case]:
    return [
        _tokenizer("no end of text", "no special token", lambda f: f.update(added_tokens=[])),
        _tokenizer("Unigram", "Unigram", lambda f: f["model"].update(type="Unigram")),
        _tokenizer("dropout", "dropout", lambda f: f["model"].update(dropout=0.5)),
        _tokenizer("an entry of 1 MB", "1 to 1024", _vocab(**{HUGE_NAME: 262})),
        _tokenizer("an entry with NUL", "not spelt", _vocab(**{"\0": 262})),
        _tokenizer("vocabulary a list", "not a table", lambda f: f["model"].update(vocab=[["a", 1]])),
        _tokenizer("a byte missing", "", lambda f: f["model"]["vocab"].pop("a")),
        _tokenizer(
            "a space before the text",
            "add_prefix_space",
            lambda f: f["pre_tokenizer"].update(add_prefix_space=True),
        ),
        _tokenizer("an unknown key", "unknown key", lambda f: f.update(code="evil")),
        _tokenizer("10^5 deep", "nested", lambda f: b'{"model":' * 100_000),
        _tokenizer("half a surrogate", "surrogate", lambda f: f["model"]["vocab"].update({"\ud800": 262})),
        _tokenizer(
            "a post-processor",
            "RobertaProcessing",
            lambda f: f.update(post_processor={"type": "RobertaProcessing"}),
        ),
        _slow("valid", None, "vocab.json", None),
        _slow("merges that are not UTF-8", "not UTF-8", "merges.txt", b"\xff\xfe t h\n"),
        _slow("a merge of three", "not a pair", "merges.txt", "t h e\n"),
        _slow("a vocabulary that is a list", "not a JSON object", "vocab.json", []),
        _slow("20 MB of merges", "over the limit", "merges.txt", b"t h\n" * 5_000_000),
        _slow("4 million merges", "over 100000 merges", "merges.txt", b"t h\n" * 4_000_000),
        _slow("an added token out of range", "added_tokens.json", "added_tokens.json", {"[X]": 999}),
    ]


def _template(name: str, rule: str | None, text: str) -> Case:
    return Case(
        name=f"template: {name}",
        build=lambda folder, marker: put(good(folder), TEMPLATE_FILE, text),
        rule=rule,
        file=TEMPLATE_FILE if rule else "",
    )


def template_cases() -> list[Case]:
    loops = "".join(f"{{% for a{n} in messages %}}" for n in range(6)) + "{% endfor %}" * 6
    walk = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    settings = {"chat_template": walk}
    return [
        _template("an ordinary one", None, TEMPLATE),
        _template("class walk", "underscores", walk),
        _template("class walk by subscript", "inside Python", "{{ ''['__class__'] }}"),
        _template("class walk by halves", "inside Python", "{{ ''['_' ~ '_class_' ~ '_'] }}"),
        _template("class walk by escapes", "backslash", "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'] }}"),
        _template("class walk by attr", "attr", "{{ ''|attr('class') }}"),
        _template("class walk by map", "inside Python", "{{ messages|map(attribute='__class__')|list }}"),
        _template("lipsum", "lipsum", "{{ lipsum(10) }}"),
        _template("cycler globals", "cycler", "{{ cycler('a').next() }}"),
        _template("format method", "format", "{{ '{0.x}'.format(messages) }}"),
        _template("format filter", "format", "{{ '%s'|format(1) }}"),
        _template("format_map", "format_map", "{{ '{x}'.format_map(messages) }}"),
        _template("percent width", "%", "{{ '%9999d' % 1 }}"),
        _template("text times 10^10", "times", "{{ 'a' * 10000000000 }}"),
        _template("number times text", "times", "{{ 9999 * 'a' }}"),
        _template("a large number", "over the limit", "{{ x * 10000000000 }}"),
        _template("a power", "**", "{{ 9 ** 9 ** 9 }}"),
        _template("a huge range", "over the limit", "{% for i in range(1000000000) %}{% endfor %}"),
        _template(
            "range in range",
            "range inside",
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
        ),
        _template("deep loops", "deep", loops),
        _template("include", "include", "{% include '/etc/passwd' %}"),
        _template("include with a trim", "include", "{%- include '/etc/passwd' -%}"),
        _template("import", "import", "{% import 'os' as os %}"),
        _template("from", "from", "{% from 'os' import system %}"),
        _template("extends", "extends", "{% extends 'base' %}"),
        _template("call", "call", "{% call x() %}{% endcall %}"),
        _template("a filter block", "filter", "{% filter upper %}{% endfilter %}"),
        _template("center filter", "center", "{{ 'a'|center(9999) }}"),
        _template("10^5 brackets", "deep", "{{ " + "(" * 30_000 + " }}"),
        _template("an unclosed block", "does not end", "{{ 'a'"),
        _template("an unclosed comment", "does not end", "{# a"),
        _template("1 MB", "over the limit", "a" * (1 << 20)),
        _template("control characters", "control", "a\x1b[2J"),
        _template("not closed text", "not part", "{{ 'abc }}"),
        Case(
            name="template: in the tokenizer's settings",
            build=lambda folder, marker: put(good(folder), "tokenizer_config.json", settings),
            rule="underscores",
            file="tokenizer_config.json",
        ),
        Case(
            name="template: a number",
            build=lambda folder, marker: put(good(folder), "tokenizer_config.json", {"chat_template": 7}),
            rule="chat_template",
            file="tokenizer_config.json",
        ),
    ]


def text_cases() -> list[Case]:
    return [
        *_config_values(),
        *_config_texts(),
        *_tokenizer_parts(),
        *_tokenizer_entries(),
        *_tokenizer_forms(),
        *template_cases(),
    ]
