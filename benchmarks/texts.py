"""Real text that every Debian machine has: its package descriptions."""

import subprocess


def package_descriptions(most: int | None = None) -> list[str]:
    """Description and first lines of packages, in the order of ``apt-cache dumpavail``.

    Raises:
      SystemExit: The list is empty: ``apt-get update`` fills it.
    """
    dump = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True).stdout
    texts = []
    for block in dump.decode("utf-8", "replace").split("\n\n"):
        _, found, description = block.partition("\nDescription: ")
        if not found:
            _, found, description = block.partition("\nDescription-en: ")
        if found:
            lines = description.split("\n")
            texts.append(" ".join([lines[0], *(x.strip() for x in lines[1:] if x[:1] == " ")]))
            if most is not None and len(texts) >= most:
                break
    if not texts:
        raise SystemExit("apt knows no packages: run `apt-get update`")
    return texts
