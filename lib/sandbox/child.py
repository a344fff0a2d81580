"""The program that runs inside the sandbox process.

Started by `lib.sandbox.sandbox`, never imported by it.

    python -s -P -S child.py JOB_FD RESULT_FD

It reads one JSON job, gives up every right it can, runs the untrusted code and reports on RESULT_FD
in lines that start with a token which the untrusted code was never told. Only the standard library,
imported as little as possible. The token lies in a local variable of this file: code that walks the
interpreter's frames in search of it can cheat.
"""

import os
import sys

# x86-64 system calls that untrusted code has no business with.
DENIED = (
    # processes: fork vfork execve execveat kill tkill tgkill setpgid setsid ptrace sigqueueinfo
    # process_vm pidfd
    57, 58, 59, 322, 62, 200, 234, 109, 112, 101, 129, 297, 310, 311, 424, 434, 438, 440,
    # network: socket to sendmsg, bind, listen, socketpair, accept4, sendmmsg; io_uring could do
    # the same
    41, 42, 43, 44, 46, 47, 49, 50, 53, 288, 299, 307, 425, 426, 427,
    # files, where landlock is silent: truncate chmod chown utime xattr futimesat utimensat
    # handle_at fchmodat2
    76, 90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280, 303,
    304, 452,
    # system: shared memory and queues, mount, chroot, namespaces, clock, modules, keys, bpf,
    # limits of others
    29, 64, 68, 135, 141, 155, 159, 160, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 175,
    176, 179, 203, 227, 240, 246, 248, 249, 250, 272, 298, 300, 302, 305, 308, 313, 320, 321,
    323, 428, 429, 430, 442,
)  # fmt: skip


def limits(job):
    """Limits on CPU, address space, file size, open files, core dumps; processes if counted."""
    import resource

    bounds = {
        resource.RLIMIT_CPU: job["cpu_s"],
        resource.RLIMIT_AS: job["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: job["file_mb"] << 20,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
    }
    # not enforced for root; the system-call filter refuses new processes for everyone
    if os.getuid():
        bounds[resource.RLIMIT_NPROC] = 0
    for kind, value in bounds.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def namespaces(libc, folder):
    """Own user, network, mount and IPC namespaces; a small memory disk is the writable folder."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x40000000 | 0x08000000 | 0x00020000):
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as handle:
            handle.write(text)
    # MS_REC | MS_PRIVATE: mounts stay in here
    libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)
    libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 2 | 4, b"size=16m,nr_inodes=1024,mode=700")
    return True


def landlock(libc, folder):
    """Reads the standard and shared libraries, writes the own folder, nothing else (Linux 5.13)."""
    import struct

    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    # 13 rights, then REFER, then TRUNCATE
    everything = (1 << (13 + (version >= 2) + (version >= 3))) - 1
    network, scope = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attributes = struct.pack("QQQ", everything, network, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(444, attributes, size, 0)
    if ruleset < 0:
        return False

    def allow(path, rights):
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        if not os.path.isdir(path):
            # write, read and truncate are the rights that a single file knows
            rights &= 0b110 | 1 << 14
        libc.syscall(445, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
        os.close(descriptor)

    read = 0b1100  # READ_FILE, READ_DIR
    for path in sys.path:
        # entry by entry, for installed packages (some hold answers) stay unreadable
        if os.path.isdir(path):
            for entry in os.listdir(path):
                if entry not in ("site-packages", "dist-packages"):
                    allow(os.path.join(path, entry), read)
    if sys.base_prefix not in ("/usr", "/"):
        home = os.path.join(sys.base_prefix, "lib")
        for entry in os.listdir(home) if os.path.isdir(home) else ():
            if ".so" in entry:
                allow(os.path.join(home, entry), read)
    libraries = ("/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu")
    for path in (*libraries, "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"):
        allow(path, read)
    allow("/dev/null", 0b110)
    allow(folder, everything)
    done = libc.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return done


def seccomp(libc):
    """Refuse the system calls above; `clone` may make threads only.

    x86-64; elsewhere the audit hook stands in.
    """
    if os.uname().machine != "x86_64":
        return False
    import ctypes
    import struct

    refuse, allow, unknown = 0x00050001, 0x7FFF0000, 0x00050026  # EPERM, go on, ENOSYS

    def step(code, true, false, value):
        return struct.pack("HBBI", code, true, false, value)

    # Each step: operation, steps to skip if true, if false, value. 0x20 loads a field, 0x15 is ==,
    # 0x35 is >=, 0x45 is "has bits", 0x06 returns.
    program = [step(0x20, 0, 0, 4), step(0x15, 1, 0, 0xC000003E)]
    program += [step(0x06, 0, 0, 0x80000000)]  # 32-bit: kill
    program += [step(0x20, 0, 0, 0), step(0x35, 0, 1, 0x40000000)]
    program += [step(0x06, 0, 0, refuse)]  # x32: refuse
    program += [step(0x15, 0, 1, 435)]
    program += [step(0x06, 0, 0, unknown)]  # clone3: the C library then tries clone
    for number in DENIED:
        program += [step(0x15, 0, 1, number), step(0x06, 0, 0, refuse)]
    program += [step(0x15, 0, 3, 56), step(0x20, 0, 0, 16)]
    program += [step(0x45, 1, 0, 0x10000)]  # clone: threads only
    program += [step(0x06, 0, 0, refuse), step(0x06, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    return libc.prctl(22, 2, header, 0, 0) == 0


def audit(folder, lacking):
    """The soft guard where the kernel offers no hard one: Python's audit events.

    Native code gets round it.
    """
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    inside = os.path.realpath(folder) + os.sep
    readable = tuple(os.path.realpath(path) + os.sep for path in sys.path)
    realpath, fsdecode = os.path.realpath, os.fsdecode
    change = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink")
    change += ("os.truncate", "os.ch", "os.utime", "os.setxattr", "os.removexattr", "shutil.")
    process = ("os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill")
    process += ("pty.", "subprocess.", "signal.pthread_kill")
    busy = False

    def hook(event, args):
        nonlocal busy
        if busy:
            return
        if "network" in lacking and event.startswith("socket."):
            raise PermissionError("no network in the sandbox")
        if "processes" in lacking and event.startswith((*process, "ctypes.")):
            raise PermissionError("no processes in the sandbox")
        if "files" not in lacking or not (event == "open" or event.startswith(change)):
            return
        busy = True  # realpath itself raises audit events
        try:
            paths = (
                [args[0]] if event == "open" else [a for a in args if isinstance(a, (str, bytes))]
            )
            for path in paths:
                if isinstance(path, (str, bytes)):
                    real = realpath(fsdecode(path))
                    reading = event == "open" and not (args[2] or 0) & writing
                    if not real.startswith(inside) and not (reading and real.startswith(readable)):
                        raise PermissionError(f"outside the sandbox: {event}")
        finally:
            busy = False

    sys.addaudithook(hook)


def isolate(job, folder):
    """Apply every layer that this system grants; returns {layer: whether it is active}."""
    import ctypes

    wanted, active = job["layers"], {}
    limits(job)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    try:
        active["namespaces"] = "namespaces" in wanted and namespaces(libc, folder)
    except (OSError, AttributeError):
        active["namespaces"] = False
    os.chdir(folder)  # after the mount, or the folder beneath it would stay the current one
    try:
        libc.prctl(4, 0, 0, 0, 0)  # not dumpable: no other process of this user may look inside
        libc.prctl(38, 1, 0, 0, 0)  # no new privileges, which the next two need
        libc.capset(b"\x22\x05\x08\x20\0\0\0\0", bytes(24))  # keep no capability, also as root
        active["landlock"] = "landlock" in wanted and landlock(libc, folder)
        active["seccomp"] = "seccomp" in wanted and seccomp(libc)
    except (OSError, AttributeError):
        active.setdefault("landlock", False)
        active.setdefault("seccomp", False)
    lacking = {"files"} if not active["landlock"] else set()
    lacking |= {"processes"} if not active["seccomp"] else set()
    lacking |= {"network"} if not (active["seccomp"] or active["namespaces"]) else set()
    if lacking:
        audit(folder, lacking)
    return active


def main():
    import json

    job_fd, result_fd = int(sys.argv[1]), int(sys.argv[2])
    with open(job_fd, "rb") as handle:
        job = json.loads(handle.read())
    sys.argv[:] = [""]
    token, write, dumps, leave = job.pop("token"), os.write, json.dumps, os._exit
    flush = (sys.stdout.flush, sys.stderr.flush)

    def report(**fields):
        write(result_fd, (token + dumps(fields) + "\n").encode())

    sys.path[:] = [path for path in sys.path if "site-packages" not in path]
    here = os.path.dirname(os.path.abspath(__file__))
    harness = {"__name__": "harness"}
    with open(os.path.join(here, "harness.py")) as handle:
        exec(compile(handle.read(), "harness", "exec"), harness)
    active = isolate(job, os.path.realpath(os.environ.pop("SANDBOX_FOLDER")))
    os.environ.clear()
    report(event="start", active=active)
    try:
        final = harness["run"](job, report)
    except MemoryError:
        final = {"error": "MemoryError", "where": "harness"}
    for function in flush:
        try:
            function()
        except BaseException:  # closed or replaced by the code under test
            final = {**final, "flush": False}
    report(event="end", **final)
    leave(0)  # no exit handlers, no destructors of the code under test


if __name__ == "__main__":
    main()
