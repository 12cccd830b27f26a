"""A small process to supervise: `python toy_process.py PORT JOURNAL NAME [child|deaf|fail]…`

Listens on PORT, appends `NAME start` and `NAME stop` to JOURNAL, ends on TERM. `child` starts a
grandchild in a session of its own, `deaf` ignores TERM, `fail` ends at once with code 3.
"""

import os
import signal
import socket
import subprocess
import sys


def main(port: int, file: str, name: str, *modes: str) -> None:
    def write(what: str) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{name} {what}\n".encode())
        os.close(descriptor)

    def stop(*_: object) -> None:
        write("stop")
        sys.exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in modes else stop)
    if "fail" in modes:
        sys.stderr.write("toy fails as asked\n")
        sys.exit(3)
    if "child" in modes:
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
    write("start")
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        listener.accept()[0].close()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
