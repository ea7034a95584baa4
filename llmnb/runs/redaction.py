"""Secrets among a notebook's parameters: which they are, and how texts are freed of them."""

import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "•••"
SECRET_WORDS = {"secret", "password", "passwd", "pwd", "credential", "credentials"}
SECRET_WORDS |= {"apikey", "passphrase"}
KEY_WORDS = {"api", "access", "private", "secret", "auth"}  # with "key", they make a secret
KEY_WORDS |= {"openai", "hf", "anthropic"}
# A token with one of these in its name belongs to a text; any other one gives access.
TEXT_TOKEN_WORDS = {"stop", "mask", "pad", "eos", "bos", "unk", "end", "start", "sep", "cls"}
TEXT_TOKEN_WORDS |= {"special", "new", "max", "min", "n"}
MIN_SECRET_CHARACTERS = 4  # a shorter secret occurs in any text: it can't be searched for


def words_of_name(name: str) -> list[str]:
    """The words of a name in lower case: hf, token for hf_token and for hfToken."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)  # HFToken: HF_Token
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_")


def is_secret(name: str) -> bool:
    """Whether a parameter's name says that its value must not be stored: api_key, hfToken, …."""
    words = set(words_of_name(name))
    is_key = bool({"key", "keys"} & words and KEY_WORDS & words)
    is_token = "token" in words and not TEXT_TOKEN_WORDS & words
    return is_key or is_token or bool(SECRET_WORDS & words)


def secret_variable(name: str) -> str:
    """The environment variable in which a secret parameter reaches the kernel."""
    return f"LLMNB_SECRET_{name.upper()}"


def secrets(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that must not be stored: those with a secret's name and a text."""
    return {k: v for k, v in parameters.items() if is_secret(k) and isinstance(v, str) and v}


def redacted(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as they may be stored."""
    return dict(parameters) | dict.fromkeys(secrets(parameters), REDACTED)


def spellings(text: str) -> set[str]:
    """The forms, plain and escaped, in which outputs can hold the text; none for a short one."""
    if len(text) < MIN_SECRET_CHARACTERS:
        return set()
    spellings = {text, repr(text)[1:-1], text.replace("\\", "\\\\").replace("'", "\\'")}
    spellings |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return spellings | {html.escape(text), quote(text, safe=""), quote_plus(text)}
