"""The tokens to which a model folder gives a role: beginning, end, padding and so on."""

from pathlib import Path

from ridgeline.errors import InputError
from ridgeline.weights.files import read_optional_json

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(folder: Path) -> dict[str, str]:
    """The text of the tokens with a role (``bos_token``, ``eos_token``, ...); a role without one is absent.

    ``tokenizer_config.json`` decides over the older ``special_tokens_map.json``. Raises InputError if a file
    is broken or a role's token isn't text.
    """
    found = {}
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        fields = read_optional_json(file)
        for role in _ROLES:
            token = fields.get(role)
            if isinstance(token, dict):  # the text together with its matching rules
                token = token.get("content")
            if isinstance(token, str):
                found[role] = token
            elif token is not None:
                raise InputError(f"{file}: {role} is {token!r}, expected text")
    return found


def role_ids(folder: Path, field: str) -> tuple[int, ...]:
    """The token ids in ``field`` (``eos_token_id``, ...) of ``generation_config.json``, else ``config.json``.

    A negative id, as in some older configs, means none. Raises InputError if a file is broken or the field
    holds neither an id nor a list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        value = read_optional_json(folder / name).get(field)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in ids):
            raise InputError(f"{folder / name}: {field} is {value!r}, expected a token id or a list of them")
        return tuple(item for item in ids if item >= 0)
    return ()
