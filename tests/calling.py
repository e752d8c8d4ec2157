"""`pconv` as tests call it: in this process with Python's values, or in one of its own with words."""
import os
import subprocess
import sys

from pconv_course.base.core import clean_exit
from pconv_course.cli import COMMANDS

MODULE = [sys.executable, "-m", "pconv_course"]  # the script that pip installs may belong to another checkout


def command_of(name):
    "The function behind 'train' or 'lab bench'."
    found = COMMANDS
    for word in name.split(): found = found[word]
    return found


def pconv(name, *args, **options):
    "Call a command with values instead of words. Leaves by SystemExit as the command does; None when all went well."
    with clean_exit(f"pconv {name}"): return command_of(name)(*args, **options)


def shell(name, *words, timeout=300, cwd=None, **env):
    "The same in a process of its own: (exit code, stdout, stderr)."
    r = subprocess.run([*MODULE, *name.split(), *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=timeout,
                       env={**os.environ, "OMP_NUM_THREADS": "1", **env})
    return r.returncode, r.stdout, r.stderr
