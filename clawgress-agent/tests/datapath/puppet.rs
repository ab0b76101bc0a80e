//! A process in a cgroup that makes sockets and uses them as a test tells it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::lab::{Lab, Place};

/// What the puppet knows besides Python. Sockets give up after `REFUSED`, or wait `WORKS` where told.
const PROLOGUE: &str = r"
import sys, os, socket, errno, struct, ctypes
held = {}
def family(a): return socket.AF_INET6 if ':' in a else socket.AF_INET
def made(a, kind=socket.SOCK_STREAM, wait=0.7):
    s = socket.socket(family(a), kind); s.settimeout(wait); return s
def dial(name, a, port, wait=0.7, before=None):
    s = made(a, wait=wait)
    if before: before(s)
    s.connect((a, port)); held[name] = s; return 'ok'
def talk(name, word='hello', wait=0.7):
    s = held[name]; s.settimeout(wait); s.sendall(word.encode())
    got = b''
    while len(got) < len(word):
        more = s.recv(64)
        if not more: return 'end'
        got += more
    return got.decode()
def send(a, port, before=None):
    s = made(a, socket.SOCK_DGRAM)
    if before: before(s)
    s.sendto(b'x', (a, port)); held['udp'] = s; return 'ok'
def tried(kind, a, port):
    # What the kernel says to it at once, whether anybody answers or not.
    with socket.socket(family(a), kind) as s:
        s.setblocking(False)
        if kind == socket.SOCK_STREAM: return s.connect_ex((a, port)) == errno.EPERM
        try: s.sendto(b'x', (a, port))
        except OSError as e: loose = e.errno == errno.EPERM
        else: loose = False
    with socket.socket(family(a), kind) as s:
        return loose, s.connect_ex((a, port)) == errno.EPERM
def tell(name, a, port):
    # One socket for them all, never connected.
    s = held.get(name) or made(a, socket.SOCK_DGRAM, 10)
    held[name] = s; s.sendto(b'ping', (a, port)); return s.recv(64).decode()
def question(name, a, port, bound=None):
    s = made(a, socket.SOCK_DGRAM, 10)
    if bound: s.bind((bound, 0))
    s.connect((a, port)); s.sendall(b'hello'); held[name] = s; return 'ok'
def loose(name, a, port):
    # As `tell`, but whoever asks hears it when it likes.
    s = held.get('loose6' if ':' in a else 'loose4') or made(a, socket.SOCK_DGRAM, 10)
    held[name] = held['loose6' if ':' in a else 'loose4'] = s; s.sendto(b'hello', (a, port)); return 'ok'
def heard(name):
    got, (a, port, *_) = held[name].recvfrom(64)
    return got.decode() + ' ' + ('[%s]:%d' if ':' in a else '%s:%d') % (a, port)
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, key, value=bytes(8)):
    key, value = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    attr = struct.pack('=IIQQQ', held['fds'][-1], 0, ctypes.addressof(key), ctypes.addressof(value), 0)
    number = {'x86_64': 321, 'aarch64': 280}[os.uname().machine]
    if libc.syscall(number, command, ctypes.create_string_buffer(attr, len(attr)), len(attr)):
        raise OSError(ctypes.get_errno(), 'bpf')
    return 'ok'
def take(path):
    s = socket.socket(socket.AF_UNIX); s.connect(path)
    held['loan'] = s; held['fds'] = socket.recv_fds(s, 65536, 64)[1]
    return len(held['fds'])
def cookie(s): return s.getsockopt(socket.SOL_SOCKET, 57, 8)
def register(agent, flags=0): return lambda s: bpf(2, cookie(s), struct.pack('II', agent, flags))
def unprivileged():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    return [l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')][0]
def say(value): sys.stdout.write(str(value) + '\n'); sys.stdout.flush()
for line in sys.stdin:
    try: say(eval(line))
    except socket.timeout: say('timeout')
    except OSError as e: say(errno.errorcode.get(e.errno, str(e)))
";

/// A process in a workload's cgroup and the gateway's namespace that does as it is told.
pub struct Puppet {
    pub child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Puppet {
    pub fn new(lab: &Lab, cgroup: &str) -> Puppet {
        // The shell enters the cgroup first, so that every socket is made in there.
        let script = format!("echo $$ > {cgroup}/cgroup.procs && exec python3 -c \"$PROGRAM\"");
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", lab.ns(Place::Gateway)))
            .args(["sh", "-c", &script])
            .env("PROGRAM", PROLOGUE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter");
        let stdin = child.stdin.take().expect("stdin");
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        Puppet { child, stdin, stdout }
    }

    /// The value of a Python expression, or the error's name.
    #[track_caller]
    pub fn tell(&mut self, expression: &str) -> String {
        writeln!(self.stdin, "{expression}").expect("the puppet lives");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("an answer");
        line.trim().to_owned()
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
