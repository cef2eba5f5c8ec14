"""`farebox completion`: the script by which a shell completes commands, options and their values."""

from __future__ import annotations

import sys
from typing import Literal

from cyclopts import App

from gateway.cli.common import OK

app = App(name="completion")


@app.default
def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print the script. To have it in every shell, once:

    bash: `farebox completion bash > ~/.local/share/bash-completion/completions/farebox`;
    zsh: `farebox completion zsh > "${fpath[1]}/_farebox"`;
    fish: `farebox completion fish > ~/.config/fish/completions/farebox.fish`.
    """
    from gateway.cli import build

    sys.stdout.write(build().generate_completion(prog_name="farebox", shell=shell))
    return OK
