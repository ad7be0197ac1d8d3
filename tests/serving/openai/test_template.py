"""Chat templates, and the other files beside a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pom_export.errors import InputError
from pom_export.serving.openai.template import ChatTemplate, chat_template
from pom_export.text.tokenizer_files import TokenizerFiles, read_tokenizer_files
from pom_export.text.tokenizers import ByteTokenizer, choose_tokenizer
from tests.serving.openai.conversation import TEMPLATE, write_tokenizer

SAID = [{"role": "user", "content": "<b> é"}]


def files_of(folder: Path) -> TokenizerFiles:
    return read_tokenizer_files(choose_tokenizer(str(folder / "tokenizer.json"), 264))


def test_what_lies_beside_a_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    found = files_of(tmp_path)
    assert (found.template, found.begin, found.end, found.ends) == (TEMPLATE, "<s>", "</s>", {257})
    assert found.origin == str(tmp_path / "tokenizer_config.json")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [257, 258], "temperature": 0.7}')
    assert files_of(tmp_path).ends == {257, 258}
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}é")
    assert files_of(tmp_path).template == "{{ bos_token }}é"
    assert read_tokenizer_files(ByteTokenizer()) == TokenizerFiles()


def test_the_default_of_named_templates_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write_tokenizer(tmp_path, named)
    assert files_of(tmp_path).template == "plain"
    write_tokenizer(tmp_path, named[:1])
    assert files_of(tmp_path).template == "tools"
    write_tokenizer(tmp_path, None)
    assert files_of(tmp_path).template is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json holds a list, not an object"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token in .* is an int, not a text"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template in .* is no text"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id in .* is 'x', not a token's id"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
    ],
)
def test_damaged_files_are_named(name: str, content: Any, message: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        files_of(tmp_path)


def rendered(source: str) -> str:
    return ChatTemplate(source, "x.jinja", "<s>", "</s>").render(SAID)


def test_templates_are_rendered_as_by_transformers() -> None:
    assert rendered("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s><b> é</s>"
    assert rendered("{{ messages | tojson }}") == json.dumps(SAID, ensure_ascii=False)
    # Nothing is left of a line with a tag alone.
    marked = "{% for m in messages %}\n  {% generation %}{{ m.role }}{% endgeneration %}\n{% endfor %}"
    assert rendered(marked) == "user"
    assert rendered("{% for m in messages %}{% break %}{% endfor %}{{ add_generation_prompt }}") == "True"
    assert len(rendered("{{ strftime_now('%Y') }}")) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
        ("{{ messages[3].content.x }}", "refuses the messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses the messages: access to attribute"),
        ("{{ messages.append(1) }}", "refuses the messages: access to attribute"),
        ("{{ 1 // 0 }}", "refuses the messages"),
    ],
)
def test_a_template_that_fails_refuses_the_messages(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rendered(source)


def test_what_is_no_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.jinja has no template that Jinja reads: Encountered unknown tag"):
        rendered("{% nonsense %}")
    with pytest.raises(InputError, match=r"none\.jinja"):
        chat_template(str(tmp_path / "none.jinja"), TokenizerFiles())
    assert chat_template(None, TokenizerFiles()) is None
