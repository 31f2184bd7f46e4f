"""Chat templates: which file says it, what it opens of the response, and programs that do not end."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from taro.core.errors import ConfigError, ModelError
from taro.grounding.prompts import Asking, load_template
from taro.models.asking import ask, check_asking
from taro.models.chat_template import Turn, render_turn
from taro.models.families import FAMILIES
from taro.models.load import load_policy
from taro.models.render_chat import environment
from tests.helpers_models import TINY, with_template
from tests.models.helpers import CASES, make_prompt

CLOSED = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param](tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("ending", "opened"), [
    ("", ""), ("<think>", "<think>"), ("<think>\n", "<think>\n"), ("<think>\nFirst, ", "<think>\nFirst, "),
    (CLOSED, ""), (CLOSED + "<think>\n", "<think>\n"), ("</think>", ""), ("Begin with <think>.<|im_end|>\n", ""),
    ("<answer>", ""),
])  # fmt: skip
def test_what_a_template_opens_is_of_the_response(folder: Path, tmp_path: Path, ending: str, opened: str) -> None:
    plain = load_policy(folder, tower=True)
    policy = load_policy(with_template(folder, tmp_path / "x", ending), tower=True)
    ours, _ = make_prompt(policy, CASES[0], "what does <think> do?")
    without, _ = make_prompt(plain, CASES[0], "what does <think> do?")
    assert ours.opened == policy.prompts.opened == opened and without.opened == ""
    assert ours.ids_P.tolist() == [*without.ids_P.tolist(), *policy.encode_text(ending)]
    assert torch.equal(ours.places_M, without.places_M)


@pytest.mark.parametrize(("opened", "response", "inside"), [
    ("<think>\n", "ab</think><answer>1</answer>", "ab"), ("<think>\nFirst, ", "ab</think>", "ab"),
    ("<think>", "ab", "ab"), ("<think>\n", "</think>ab", ""), ("", "ab</think>", ""), ("", "<think>ab</think>", "ab"),
    ("<think>\n", "<think>ab</think>", "<think>ab"),
])  # fmt: skip
def test_reasoning_counts_from_the_tag_that_the_prompt_opened(folder: Path, opened: str, response: str,
                                                              inside: str) -> None:
    policy = load_policy(folder)
    ids = policy.encode_text(response)
    mask = policy.reasoning_mask(ids, opened)
    assert len(mask) == len(ids)
    assert policy.decode([i for i, keep in zip(ids, mask, strict=True) if keep]) == inside


def test_no_answer_alone_from_a_prompt_that_opens_a_reasoning(folder: Path, tmp_path: Path) -> None:
    policy, closed = (load_policy(with_template(folder, tmp_path / str(n), ending), tower=True)
                      for n, ending in enumerate(("<think>\n", CLOSED)))
    features = make_prompt(policy, CASES[1], "x")[0].features
    template = load_template("taro")
    with pytest.raises(ConfigError, match="its chat template opens <think> itself"):
        ask(policy, Asking(template, no_think=True), features, "ab")
    assert ask(policy, Asking(template), features, "ab").opened == "<think>\n"
    check_asking(closed, Asking(template, no_think=True))


MARKED = ("{% for c in messages[0]['content'] %}{{ '<|video_pad|>' if c['type'] == 'video' else c['text'] }}"
          "{% endfor %}MARK")


def placed(folder: Path, files: dict[str, Any]) -> Path:
    """The folder with these template files and no others."""
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    for name, value in files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if name.endswith(".jinja"):
            file.write_text(value)
        else:
            data = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps({**data, "chat_template": value}))
    return folder


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": MARKED}]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # transformers leaves files open
@pytest.mark.filterwarnings("ignore:Exception ignored in.*chat_template:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("files", [
    {"chat_template.jinja": MARKED}, {"chat_template.json": MARKED}, {"tokenizer_config.json": MARKED},
    {"processor_config.json": MARKED}, {"tokenizer_config.json": NAMED},
    {"chat_template.jinja": MARKED, "additional_chat_templates/tool_use.jinja": "tools"},
    {"additional_chat_templates/default.jinja": MARKED, "additional_chat_templates/tool_use.jinja": "tools"},
    {"chat_template.jinja": MARKED, "tokenizer_config.json": "another"},
    {"chat_template.json": MARKED, "chat_template.jinja": MARKED},
], ids=lambda files: " ".join(files))  # fmt: skip
def test_a_template_is_found_where_the_stock_processor_finds_it(folder: Path, tmp_path: Path,
                                                                files: dict[str, Any]) -> None:
    from transformers import AutoProcessor

    copy = placed(Path(shutil.copytree(folder, tmp_path / "x")), files)
    policy = load_policy(copy, tower=True)
    prompt, _ = make_prompt(policy, CASES[1], "TEXT")
    mine = policy.tokenizer.decode(prompt.ids_P)
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "TEXT"}]}]
    stock = AutoProcessor.from_pretrained(copy)
    if getattr(stock, "chat_template", None) is None:  # the stock processor asks its tokenizer itself, where it must
        stock = stock.tokenizer
    said = stock.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert said == "<|video_pad|>TEXTMARK" and mine.endswith("TEXTMARK")


@pytest.mark.parametrize(("files", "message"), [
    ({"tokenizer_config.json": [{"name": "a", "template": MARKED}, {"name": "b", "template": MARKED}]},
     "named a, b; expected one named default"),
    ({"chat_template.json": [{"name": "a", "template": MARKED}]}, "named a; expected one named default"),
    ({"chat_template.json": 5}, "its chat template is a int"),
    ({"chat_template.json": [{"name": {}, "template": "a"}, {"name": [], "template": "a"}]}, "named nothing; expected"),
    ({"chat_template.json": [1, {"name": "default", "template": 5}]}, "expected one named default"),
    ({"additional_chat_templates/tool_use.jinja": "tools"}, "named tool_use; expected one named default"),
    ({"chat_template.json": MARKED, "chat_template.jinja": MARKED + "!"},
     "chat_template.json and chat_template.jinja hold different chat templates"),
    ({"chat_template.json": MARKED, "processor_config.json": MARKED + "!"}, "hold different chat templates"),
], ids=str)  # fmt: skip
def test_what_is_no_one_template_is_refused(folder: Path, tmp_path: Path, files: dict[str, Any], message: str) -> None:
    copy = placed(Path(shutil.copytree(folder, tmp_path / "x")), files)
    with pytest.raises(ModelError, match=message):
        load_policy(copy)


@pytest.mark.parametrize("template", [
    "{{ messages | tojson }}<|video_pad|>{{ messages[0]['content'][1]['text'] }}",
    "<|video_pad|>{{ messages[0]['content'][1]['text'] }}{{ messages[0]['content'][1]['text'] }}",
    "<|video_pad|>{{ messages[0]['content'][1]['text'] }}<|video_pad|>",
    "<|video_pad|><|video_pad|>{{ messages[0]['content'][1]['text'] }}",
])  # fmt: skip
def test_a_template_writes_video_and_text_once(folder: Path, template: str) -> None:
    """What stands for the text while a template is rendered would else reach the model."""
    with pytest.raises(ModelError, match="writes the video or the text more than once; expected each once"):
        render_turn(folder, template, load_policy(folder).tokenizer, "<|video_pad|>")


PROGRAMS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
             "{% endfor %}",
    "doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "multiplies": "{{ 'a' * 10**11 }}", "power": "{{ 10 ** (10 ** 10) }}", "pads": "{{ 'a'.ljust(10**11) }}",
    "format": "{{ '%100000000000d' % 1 }}", "lists": "{{ [0] * 10**11 }}", "recursion":
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "long": "{% for i in range(90000) %}{{ 'a' * 99 }}{% endfor %}",
    "nested": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "writes": "{{ cycler.__init__.__globals__.os.system('touch x') }}", "private": "{% set n = namespace(_a=1) %}",
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_template_that_does_not_end_ends(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In time and memory: this process may take no more than it has."""
    import resource

    monkeypatch.setattr("taro.models.chat_template.DEADLINE_S", 3.0)
    tokenizer = load_policy(folder).tokenizer
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ModelError, match=r"the chat template cannot be used: .{5}"):
        render_turn(folder, PROGRAMS[program], tokenizer, "<|video_pad|>")
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("template", [
    "{{ messages[0].role }}|{{ messages[0]['content'][1]['text'] | tojson }}|{{ eos_token }}|{{ pad_token }}",
    "{% generation %}a{{ messages | length }}{% endgeneration %}\n  {% if tools %}t{% endif %}\n-{{ documents }}",
    "{% for i in range(9) %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}\n\n{{ {'b': '\u00e9<'} | tojson }}",
    "{% set n = namespace(x=1, self=2) %}{% set n.x = n.x + 1 %}{{ n.x }}{{ dict(a=1).a }}{{ add_generation_prompt }}",
    "{{ strftime_now('%Y') | length }}{{ '  a ' | trim }}{{ enable_thinking is defined }}{{ undefined }}",
])  # fmt: skip
def test_templates_mean_what_they_mean_to_transformers(folder: Path, template: str) -> None:
    tokenizer = load_policy(folder).tokenizer
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "a \"b\" \u00e9 <"}]}]
    stock = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    assert environment().from_string(template).render(**variables, **tokenizer.special_tokens_map) == stock


def test_special_tokens_end_what_was_opened() -> None:
    assert Turn("", "", "<think>\n<|im_end|>").opened(["<|im_end|>"]) == ""
    assert Turn("", "", "<think>\n").opened(["<think>", "<|im_end|>"]) == "<think>\n"
