"""The types of the package, and of the Python that the pages show, by pyright (``make types``)."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.pages import PAGES, ROOT, blocks

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for page in PAGES:  # the blocks of a page go on from one another
            Path(folder, f"{Path(page).stem}.py").write_text("\n".join(blocks(page, "python")))
        checker = [sys.executable, "-m", "pyright", "-p", str(ROOT), "--pythonpath", sys.executable]
        sys.exit(subprocess.run([*checker, "score_sde", folder], cwd=ROOT).returncode)
