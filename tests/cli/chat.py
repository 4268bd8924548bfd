#!/usr/bin/env python3
"""tests/cli/chat.py PROGRAM: `mica run --chat` as people use it, on a pseudo-terminal and through a pipe: Ctrl-C ends a reply or the line that was
begun and not the program, Ctrl-D ends it, SIGTERM always does; a turn that does not fit, a NUL byte, input that cannot be read are told."""
import os, pty, select, shutil, signal, subprocess, sys, tempfile, time

PROGRAM = os.path.realpath(sys.argv[1])
MODEL = os.path.realpath(os.path.join(os.path.dirname(__file__), "../../models/tiny-k2"))
TEMPLATE = "<|im_system|>system<|im_middle|> <|im_user|>user<|im_middle|> <|im_assistant|>assistant<|im_middle|>"
PATIENCE = 60  # seconds, on a busy machine


def make_model(where):
    os.mkdir(where)
    for name in os.listdir(MODEL):
        os.symlink(os.path.join(MODEL, name), os.path.join(where, name))
    with open(os.path.join(where, "chat_template.jinja"), "w") as file:
        file.write(TEMPLATE)
    return where


class Terminal:
    """The program on a terminal of its own; all that it writes is in `seen`."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(PROGRAM, [PROGRAM, *arguments])
        self.seen = b""

    def read(self, seconds):
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            got = os.read(self.fd, 65536)
        except OSError:  # the other end is closed
            got = b""
        self.seen += got
        return bool(got)

    def until(self, text, what):
        end = time.time() + PATIENCE
        while text not in self.seen:
            if time.time() > end or not self.read(1) and not self.alive():
                raise AssertionError(f"{what}: expected {text!r}, got {self.seen!r}")
        before, self.seen = self.seen.split(text, 1)
        return before

    def alive(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def send(self, text):
        os.write(self.fd, text)

    def status(self):
        end = time.time() + PATIENCE
        while self.alive():
            assert time.time() < end, f"expected the program to end, got {self.seen!r}"
            self.read(0.1)
        while self.read(0):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def on_a_terminal(model):
    chat = Terminal("run", model, "--chat", "-n", "400", "--ignore-end", "--exact", "--threads", "1")
    chat.until(b"> ", "the first prompt")
    chat.send(b"And God said,\n")
    chat.until(b"the", "a reply begins")
    chat.send(b"\x03")
    reply = chat.until(b"> ", "Ctrl-C in a reply")
    assert b"decode" in reply and b"decode 400" not in reply, f"Ctrl-C in a reply: expected fewer than 400 tokens, got {reply!r}"
    for _ in range(3):  # at the prompt: a line that was begun is dropped, as often as one likes, and however late
        chat.send(b"half a line")
        chat.until(b"half a line", "the terminal's echo")
        chat.send(b"\x03")
        chat.until(b"(Ctrl-D ends the conversation)\r\n> ", "Ctrl-C at the prompt")
        time.sleep(0.6)
    chat.send(b"word " * 700 + b"\n")  # longer than the model's context
    chat.until(b"in the context that is left (of 512; --context)", "a turn that does not fit")
    chat.until(b"> ", "after a turn that does not fit")
    chat.send(b"And then?\n")
    chat.until(b"tok/s; decode", "a turn after all that")
    chat.until(b"> ", "the last prompt")
    chat.send(b"\x04")
    status = chat.status()
    assert status == 0, f"Ctrl-D: expected status 0, got {status} and {chat.seen!r}"

    for when in "at the prompt", "in a reply":
        chat = Terminal("run", model, "--chat", "-n", "400", "--ignore-end", "--exact", "--threads", "1")
        chat.until(b"> ", "the first prompt")
        if when == "in a reply":
            chat.send(b"And God said,\n")
            chat.until(b"the", "a reply begins")
        os.kill(chat.pid, signal.SIGTERM)
        status = chat.status()
        assert status == 130 and b"mica run: stopped" in chat.seen, f"SIGTERM {when}: expected 130, got {status} and {chat.seen!r}"


def through_a_pipe(model):
    def converse(text, *options, checkpoint=model):
        return subprocess.run([PROGRAM, "run", checkpoint, "--chat", "-n", "5", "--exact", *options], input=text, capture_output=True, timeout=300)

    def refused(what, got, status, message):
        told = got.stderr.decode().splitlines()
        assert got.returncode == status and told and told[-1].startswith("mica run: ") and message in told[-1], f"{what}: got {got}"
        assert got.stdout.endswith(b"\n") or not got.stdout, f"{what}: the output has no end of line: {got.stdout!r}"

    turns = [b"And God said,", b"And of Italy?"]
    plain = converse(b"\n".join(turns))
    assert plain.returncode == 0 and len(plain.stderr.splitlines()) == 2, f"two turns: got {plain}"
    for form in b"%s\r\n\n%s\r\n", b"%s\n%s\n":
        got = converse(form % tuple(turns))
        assert got.stdout == plain.stdout and got.returncode == 0, f"{form!r}: expected {plain.stdout!r}, got {got}"
    refused("a NUL byte", converse(b"And God\0said\n"), 3, "standard input: expected text, got a NUL byte")
    refused("a turn that does not fit", converse(b"And God said,\n" + b"word " * 9000 + b"\nmore\n"), 3, "in the context that is left")
    refused("no template", converse(b"", checkpoint=MODEL), 3, "expected a chat template beside it, got none")
    directory = os.open("/", os.O_RDONLY)
    got = subprocess.run([PROGRAM, "run", model, "--chat"], stdin=directory, capture_output=True, timeout=300)
    os.close(directory)
    refused("input that cannot be read", got, 3, "standard input: cannot read: ")

    for signal_number in signal.SIGTERM, signal.SIGINT:  # nobody is there to say more: both end the program
        with subprocess.Popen([PROGRAM, "run", model, "--chat", "-n", "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            child.stdin.write(b"And God said,\n")
            child.stdin.flush()
            child.stderr.readline()  # the meters of the first turn
            child.send_signal(signal_number)
            status = child.wait(PATIENCE)
            assert status == 130, f"{signal_number} while a turn is awaited: expected status 130, got {status}"


def main():
    scratch = tempfile.mkdtemp()
    try:
        model = make_model(os.path.join(scratch, "chat"))
        try:
            os.close(os.openpty()[0])
        except OSError:
            print("no pseudo-terminal can be made here: only pipes are tried")
        else:
            on_a_terminal(model)
        through_a_pipe(model)
    finally:
        shutil.rmtree(scratch)


main()
