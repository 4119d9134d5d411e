"""Real text from every Debian machine: its package descriptions."""

import subprocess

EMPTY_LIST = "apt knows no packages: run `apt-get update`"


def packages() -> list[dict[str, str]]:
    """All packages of ``apt-cache dumpavail``, in its order: id, section and text.

    The text is the whole description if the list holds it, else its first line.

    Raises:
      LookupError: The list is empty.
    """
    dump = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True).stdout
    found = []
    for block in dump.decode("utf-8", "replace").split("\n\n"):
        fields = _fields(block)
        text = fields.get("Description-en") or fields.get("Description")
        if text and "Package" in fields:
            section = fields.get("Section", "unknown")
            found.append({"id": fields["Package"], "section": section, "text": text})
    if not found:
        raise LookupError(EMPTY_LIST)
    return found


def _fields(block: str) -> dict[str, str]:
    """The fields of one stanza; continuation lines are joined, a lone dot is an empty line."""
    fields: dict[str, str] = {}
    name = ""
    for line in block.split("\n"):
        if line.startswith(" "):
            fields[name] = f"{fields.get(name, '')}\n{'' if line == ' .' else line[1:]}"
        else:
            name, _, value = line.partition(": ")
            fields[name] = value
    return fields
