"""An ssh server for one user and one home: whoever reaches it runs commands with this process's environment.

It says on which port it listens, and ends with its process.
"""

import asyncio
import os
import sys
from contextlib import suppress

import asyncssh


async def run(process: asyncssh.SSHServerProcess) -> None:
    """Run what a client asks for in a shell, in the home."""
    pipe = asyncio.subprocess.PIPE
    shell = await asyncio.create_subprocess_shell(
        process.command or "true", cwd=os.environ["HOME"], stdin=pipe, stdout=pipe, stderr=pipe
    )
    typed = asyncio.create_task(_type(process, shell))
    await asyncio.gather(_pass_on(shell.stdout, process.stdout), _pass_on(shell.stderr, process.stderr))
    code = await shell.wait()
    typed.cancel()
    process.exit(code if code >= 0 else 128 - code)


async def _pass_on(source: asyncio.StreamReader, target: asyncssh.SSHWriter) -> None:
    while data := await source.read(1 << 16):
        target.write(data)
        await target.drain()


async def _type(process: asyncssh.SSHServerProcess, shell: asyncio.subprocess.Process) -> None:
    """What the client sends; a shell that has gone, and the size of a terminal that there is not, do not matter."""
    with suppress(ConnectionError, asyncssh.TerminalSizeChanged, asyncssh.BreakReceived):
        while data := await process.stdin.read(1 << 16):
            shell.stdin.write(data)
            await shell.stdin.drain()
    shell.stdin.close()


class Open(asyncssh.SSHServer):
    """Lets everybody in."""

    def begin_auth(self, username: str) -> bool:
        return False


async def serve() -> None:
    """Listen on a free port of this machine."""
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=Open,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        process_factory=run,
        line_editor=False,
        encoding=None,
    )
    print(server.get_port(), flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    sys.exit(asyncio.run(serve()))
