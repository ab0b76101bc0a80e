//! A virtual machine with another kernel: an initial RAM disk made of this very test program, the agent
//! and the few tools they start, emulated (no KVM), with one console line for each step's end.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// From power-on to power-off, on a machine where other tests run beside: a few minutes on an idle one.
const RUN_TIME_MAX: Duration = Duration::from_secs(1800);
/// What the tests in the machine need: room for the maps, and for the disk, which is memory too.
const MEMORY_MIB: u32 = 2048;
/// How much of the console is shown when something failed, bytes.
const CONSOLE_BYTES_MAX: usize = 12_000;
/// How a line of [`INIT`] about a step begins.
const MARK: &str = "machine: ";
/// Programs that the lab and the agent start.
const TOOLS: [&str; 6] = ["ip", "tc", "nft", "nsenter", "ss", "busybox"];
/// Which modules there are, and in which order, is the set-up's.
const INIT: &str = "\
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /run/netns
for module in /modules/*.ko; do insmod $module || echo \"machine: no $module\"; done
ip link set lo up
step() {
  name=$1; shift; echo \"machine: begin $name\"
  \"$@\"; code=$?
  echo \"machine: $name ended with $code\"
  [ $code = 0 ] || dmesg | tail -n 40
}
";

/// What runs in the machine: a name, and the words of a command.
pub struct Step<'a> {
    pub name: &'a str,
    pub words: Vec<String>,
}

/// Boots the kernel of that series, runs `steps` in order, and gives what the console said. Fails if a
/// step fails, or the machine does not power itself off in time.
pub fn run(series: &str, programs: &[&Path], steps: &[Step<'_>]) -> String {
    let kernel = kernels().join(series);
    let vmlinuz = kernel.join("vmlinuz");
    assert!(vmlinuz.is_file(), "there is no `{}`; run `cargo xtask setup`", vmlinuz.display());
    let work = tempfile::tempdir().expect("directory");
    let disk = work.path().join("initrd");
    fs::write(&disk, initrd(&kernel, programs, steps, work.path())).expect("disk");
    let console = emulate(&vmlinuz, &disk);
    let tail = &console[console.floor_char_boundary(console.len().saturating_sub(CONSOLE_BYTES_MAX))..];
    for step in steps {
        let end = format!("{MARK}{} ended with 0", step.name);
        assert!(console.contains(&end), "Linux {series}: `{}` did not succeed:\n{tail}", step.name);
    }
    assert!(!console.contains(&format!("{MARK}no ")), "Linux {series}: a module is missing:\n{tail}");
    console
}

/// Where set-up keeps kernels.
fn kernels() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    set("CLAWGRESS_KERNELS_DIR")
        .or_else(|| cache().map(|cache| cache.join("clawgress/kernels")))
        .expect("`HOME` names no directory")
}

/// Runs the machine to its end; its console. One not ended in time is killed.
fn emulate(vmlinuz: &Path, disk: &Path) -> String {
    let begun = Instant::now();
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(disk)
        // An emulated timer comes late on a busy machine, and the kernel would take it for a broken one.
        .args(["-append", "console=ttyS0 panic=-1 loglevel=1 no_timer_check"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cannot start `qemu-system-x86_64`; run `cargo xtask setup`");
    let mut output = machine.stdout.take().expect("console");
    let reader = std::thread::spawn(move || {
        let mut console = Vec::new();
        output.read_to_end(&mut console).expect("console");
        String::from_utf8_lossy(&console).into_owned()
    });
    let mut late = false;
    while machine.try_wait().expect("wait").is_none() {
        if begun.elapsed() > RUN_TIME_MAX {
            late = true;
            machine.kill().expect("kill");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let console = reader.join().expect("reader");
    if late { format!("{console}\nthe machine did not end within {RUN_TIME_MAX:?}") } else { console }
}

fn initrd(kernel: &Path, programs: &[&Path], steps: &[Step<'_>], work: &Path) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "proc", "root", "run", "sys", "tmp"] {
        archive.directory(Path::new(dir));
    }
    let mut libraries = BTreeSet::new();
    for (n, program) in programs.iter().enumerate() {
        let small = work.join(format!("program-{n}"));
        let stripped = Command::new("strip").arg("-o").arg(&small).arg(program).status().expect("strip");
        assert!(stripped.success(), "cannot strip `{}`", program.display());
        archive.file(program, &fs::read(small).expect("program"));
        libraries.extend(needed(program));
    }
    for tool in TOOLS {
        let found = found(tool);
        let place = if tool == "busybox" { Path::new("/bin/busybox").to_owned() } else { found.clone() };
        archive.file(&place, &fs::read(&found).expect("tool"));
        libraries.extend(needed(&found));
    }
    for library in libraries {
        archive.file(&library, &fs::read(&library).expect("library"));
    }
    for module in fs::read_dir(kernel.join("modules")).expect("modules") {
        let module = module.expect("module");
        let name = Path::new("modules").join(module.file_name());
        archive.file(&name, &fs::read(module.path()).expect("module"));
    }
    let mut init = INIT.to_owned();
    for step in steps {
        init += &format!("step {} {}\n", step.name, step.words.join(" "));
    }
    init += "poweroff -f\n";
    // Roles look their users up, and find that there are none but this one.
    archive.file(Path::new("etc/passwd"), b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file(Path::new("etc/group"), b"root:x:0:\n");
    archive.file(Path::new("init"), init.as_bytes());
    archive.finish()
}

fn found(tool: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = places.iter().map(|p| Path::new(p).join(tool)).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("there is no `{tool}`; run `cargo xtask setup`"))
}

/// The shared libraries of a program, loader included.
fn needed(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    // A static program has none, and `ldd` calls that a failure.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.lines().filter_map(|l| l.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

/// An archive in the format the kernel unpacks (`newc`, Documentation/driver-api/early-userspace/
/// buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    directories: BTreeSet<PathBuf>,
}

impl Archive {
    /// A directory, and those above it.
    fn directory(&mut self, path: &Path) {
        let path = path.strip_prefix("/").unwrap_or(path);
        if path.as_os_str().is_empty() || !self.directories.insert(path.to_owned()) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.entry(path, 0o040_755, &[]);
    }

    fn file(&mut self, path: &Path, contents: &[u8]) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.entry(path.strip_prefix("/").unwrap_or(path), 0o100_755, contents);
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) {
        self.inodes += 1;
        self.raw(path.to_str().expect("a name in UTF-8"), self.inodes, mode, contents).expect("memory");
    }

    fn raw(&mut self, name: &str, inode: u32, mode: u32, contents: &[u8]) -> io::Result<()> {
        let (size, name_size) = (contents.len(), name.len() + 1);
        write!(self.bytes, "070701{inode:08X}{mode:08X}{0:08X}{0:08X}{1:08X}{0:08X}{size:08X}", 0, 1)?;
        write!(self.bytes, "{0:08X}{0:08X}{0:08X}{0:08X}{name_size:08X}{0:08X}{name}\0", 0)?;
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.raw("TRAILER!!!", 0, 0, &[]).expect("memory");
        self.bytes
    }
}
