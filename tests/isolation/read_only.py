"""Make every mount of a new namespace read-only, and become the command that is given, as a user without a name."""

import os
import subprocess
import sys
from pathlib import Path

subprocess.run(["mount", "--make-rprivate", "/"], check=True)
for line in Path("/proc/self/mounts").read_text().splitlines():
    folder = line.split()[1].encode().decode("unicode_escape")  # a space is \040 there
    if folder.split("/")[1] not in ("proc", "sys"):  # where nothing can be kept, and uid_map has to be written
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=False, stderr=subprocess.DEVNULL)
for folder in ("/", "/tmp", "/var/tmp", "/dev/shm", Path.home()):
    assert not os.access(folder, os.W_OK), f"{folder} can still be written"
user = ["unshare", "-U", "--map-user=54321", "--map-group=54321"]
os.execvp(user[0], [*user, *sys.argv[1:]])
