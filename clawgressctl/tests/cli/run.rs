//! What a command of `run` can't do, by commands that try. They need root, and leave nothing behind.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

/// Who the commands are.
const USER: &str = "nobody";

/// A cgroup, and commands in it as `run` starts them.
struct Cell(PathBuf);

impl Cell {
    fn new(name: &str) -> Cell {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let root = root.into_iter().find(|root| root.join("cgroup.procs").exists()).expect("cgroup v2");
        let cell = Cell(root.join(format!("clawgress-{name}-{}", std::process::id())));
        fs::create_dir(&cell.0).expect("these tests need root");
        cell
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawgressctl"));
        command.arg("run-child").arg("--cgroup").arg(&self.0).args(["--user", USER, "--"]).args(words);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("run")
    }

    /// What a program in Python says, when it runs as it is and when it is governed.
    fn both(&self, program: &str) -> (String, String) {
        // Not one of root's own, which that user can't run.
        let words = ["env", "PATH=/usr/local/bin:/usr/bin:/bin", "python3", "-c", program];
        let free = Command::new("setpriv")
            .args(["--reuid", USER, "--regid", "65534", "--clear-groups", "--"])
            .args(words)
            .output();
        (said(&free.expect("setpriv")), said(&self.run(&words)))
    }

    fn processes(&self) -> String {
        fs::read_to_string(self.0.join("cgroup.procs")).expect("processes")
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        while fs::remove_dir(&self.0).is_err_and(|e| e.raw_os_error() == Some(nix::libc::EBUSY)) {
            std::thread::yield_now();
        }
    }
}

#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Ends with the test.
struct Outsider(Child);

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_command_ends_as_it_would_alone() {
    let cell = Cell::new("ends");
    assert_eq!(cell.run(&["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(cell.run(&["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    let missing = cell.run(&["/nonexistent/x"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cannot run `/nonexistent/x`"), "{missing:?}");
    // A signal gets through, to a command that is not its namespace's first process.
    let script = "trap 'exit 9' TERM; echo $$; while :; do sleep 0.05; done";
    let mut child = cell.command(&["sh", "-c", script]).stdout(Stdio::piped()).spawn().expect("run");
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().expect("stdout"));
    std::io::BufRead::read_line(&mut out, &mut line).expect("a line");
    assert_ne!(line.trim(), "1", "the first process ignores most signals");
    kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGTERM).expect("kill");
    assert_eq!(child.wait().expect("wait").code(), Some(9));
    // What it leaves behind ends with it.
    said(&cell.run(&["sh", "-c", "sleep 1000 & exit 0"]));
    assert_eq!(cell.processes(), "");
}

/// Another process of the same user has sockets that nothing governs: its memory, its descriptors, it itself.
#[test]
fn a_command_sees_no_process_but_its_own() {
    let cell = Cell::new("sees");
    let outsider = Command::new("setpriv")
        .args(["--reuid", USER, "--regid", "65534", "--clear-groups", "--", "sleep", "1000"])
        .stdout(Stdio::null())
        .spawn();
    let outsider = Outsider(outsider.expect("setpriv"));
    let pid = outsider.0.id();
    // Once it is that user's, and not on its way there.
    while !fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it runs").starts_with("sleep") {
        std::thread::yield_now();
    }
    let program = format!(
        "
import os, errno
def tried(what):
    try: what(); return 'ok'
    except OSError as e: return errno.errorcode[e.errno]
def memory():
    at = int(open('/proc/{pid}/maps').readline().split('-')[0], 16)
    f = os.open('/proc/{pid}/mem', os.O_RDWR); os.pread(f, 1, at)
print(tried(lambda: os.kill({pid}, 0)), tried(memory), tried(lambda: os.listdir('/proc/{pid}/fd')),
      tried(lambda: os.pidfd_open({pid})))
"
    );
    let (free, governed) = cell.both(&program);
    assert!(free.starts_with("ok ") && free.ends_with(" ok"), "{free}");
    assert_eq!(governed, "ESRCH ENOENT ENOENT ESRCH");
    let count = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))";
    assert_eq!(cell.both(count).1, "2", "itself and the first");

    // Nor where such processes take orders.
    let uid = User::from_name(USER).expect("users").expect("nobody").uid;
    let door = PathBuf::from(format!("/run/user/{uid}"));
    let is_ours = fs::create_dir_all("/run/user").and_then(|()| fs::create_dir(&door)).is_ok();
    chown(&door, Some(uid.as_raw()), None).expect("chown");
    fs::write(door.join("clawgress-test"), "").expect("a file");
    let look = format!("import os; print(os.listdir('{0}'), os.access('{0}', os.W_OK))", door.display());
    let (free, governed) = cell.both(&look);
    fs::remove_file(door.join("clawgress-test")).expect("removed");
    if is_ours {
        fs::remove_dir(&door).expect("removed");
    }
    assert!(free.contains("clawgress-test"), "{free}");
    assert_eq!(governed, "[] True");
}

/// It shares a terminal with who started it, which may be root's shell.
#[test]
fn a_command_does_not_type_into_its_terminal() {
    let cell = Cell::new("types");
    let program = "
import os, pty, fcntl, errno, sys
def tried(fd, request, argument):
    try: fcntl.ioctl(fd, request, argument); return 'ok'
    except OSError as e: return errno.errorcode[e.errno]
r, w = os.pipe()
pid, master = pty.fork()
if pid == 0:
    # The terminal is this process's own, as a shell's is.
    os.write(w, f\"{tried(0, 0x5412, b'x')} {tried(0, 0x541C, bytes([3]))} {tried(0, 0x5401, bytes(64))}\".encode())
    os._exit(0)
os.waitpid(pid, 0)
print(os.read(r, 64).decode())
";
    let (free, governed) = cell.both(program);
    // Where the kernel does not forbid it to all (`dev.tty.legacy_tiocsti = 0`).
    assert!(free.ends_with(" ENOTTY ok"), "{free}");
    assert_eq!(governed, "EPERM EPERM ok", "and what programs need of a terminal works");
}

#[test]
fn a_command_reaches_into_no_process() {
    let cell = Cell::new("reaches");
    let program = "
import ctypes, os, errno
libc = ctypes.CDLL(None, use_errno=True)
numbers = {'x86_64': (101, 310, 311, 438), 'aarch64': (117, 270, 271, 438)}[os.uname().machine]
word = ctypes.create_string_buffer(8)
class Part(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
here = Part(ctypes.addressof(word), 8)
def tried(number, *arguments):
    return 'ok' if libc.syscall(number, *arguments) >= 0 else errno.errorcode[ctypes.get_errno()]
trace, read, write, getfd = numbers
me = os.pidfd_open(os.getpid())
part = ctypes.byref(here)
one, none = ctypes.c_long(1), ctypes.c_long(0)
print(tried(read, ctypes.c_long(os.getpid()), part, one, part, one, none),
      tried(write, ctypes.c_long(os.getpid()), part, one, part, one, none),
      tried(getfd, ctypes.c_long(me), none, none), tried(trace, none, none, none, none))
";
    let (free, governed) = cell.both(program);
    assert_eq!(free, "ok ok ok ok");
    assert_eq!(governed, "EPERM EPERM EPERM EPERM");
}
