//! The few `bpf(2)` commands that aya does not offer, BPF file systems, and plain-old-data as map keys
//! and values. Must never interpret what it carries.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clawgress_ebpf_common::user;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FS: FsType = FsType(0xcafe_4a11);

/// Commands of `bpf(2)` (linux/bpf.h).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// Flag of `BPF_PROG_TEST_RUN`: packets are real, and go where the program says.
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
/// Flags of `BPF_OBJ_GET`: system calls through the descriptor may read only, or write only.
const BPF_F_RDONLY: u32 = 1 << 3;
const BPF_F_WRONLY: u32 = 1 << 4;
/// Types of maps.
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
/// Longest name of an object, with its NUL.
const BPF_OBJ_NAME_BYTES: usize = 16;
/// Command of `fsconfig(2)` and flag of `fsmount(2)` (linux/mount.h).
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

/// A key or value of the ABI crate, as aya wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

// SAFETY: `T: user::Pod` promises no padding and validity of every bit pattern, and the wrapper is
// transparent.
unsafe impl<T: user::Pod> aya::Pod for Plain<T> {}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct LinkCreateAttr {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; BPF_OBJ_NAME_BYTES],
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// The bytes of a key or value.
pub fn bytes<T: user::Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` promises that there is no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

#[derive(Default)]
#[repr(C)]
struct TestRunAttr {
    program_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Opens a pinned object.
///
/// # Errors
/// As `bpf(2)`; `NotFound` if nothing is pinned there.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    object(path, 0)
}

/// Opens a pinned map for a process that may look entries up and never change them.
///
/// # Errors
/// As [`open`].
pub fn open_read_only(path: &Path) -> io::Result<OwnedFd> {
    object(path, BPF_F_RDONLY)
}

/// Opens a pinned map for a process that may change entries and never look them up.
///
/// # Errors
/// As [`open`].
pub fn open_write_only(path: &Path) -> io::Result<OwnedFd> {
    object(path, BPF_F_WRONLY)
}

/// Attaches `program` to `target` as the kernel's `attach_type` says, and pins the link at `pin`.
///
/// # Errors
/// As `bpf(2)`.
pub fn attach(program: &impl AsFd, target: &impl AsFd, attach_type: u32, pin: &Path) -> io::Result<()> {
    let attr = LinkCreateAttr {
        program_fd: program.as_fd().as_raw_fd().unsigned_abs(),
        target_fd: target.as_fd().as_raw_fd().unsigned_abs(),
        attach_type,
        flags: 0,
    };
    let link = owned(call(BPF_LINK_CREATE, &attr)?)?;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = ObjectAttr { path: path.as_ptr() as u64, fd: link.as_raw_fd().unsigned_abs(), flags: 0 };
    call(BPF_OBJ_PIN, &attr).map(drop)
}

/// Makes an array of `length` arrays of `inner_length` values of `value_bytes`, and pins it.
///
/// # Errors
/// As `bpf(2)`.
pub fn create_array_of_arrays(
    name: &str,
    length: u32,
    inner_length: u32,
    value_bytes: u32,
    path: &Path,
) -> io::Result<()> {
    let mut attr = MapCreateAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: value_bytes,
        max_entries: inner_length,
        map_flags: 0,
        inner_map_fd: 0,
        numa_node: 0,
        name: [0; BPF_OBJ_NAME_BYTES],
    };
    // The last byte stays NUL.
    for (to, from) in attr.name.iter_mut().take(BPF_OBJ_NAME_BYTES - 1).zip(name.bytes()) {
        *to = from;
    }
    // Its kind is remembered; itself it is not needed any more.
    let like = owned(call(BPF_MAP_CREATE, &attr)?)?;
    attr.map_type = BPF_MAP_TYPE_ARRAY_OF_MAPS;
    attr.value_size = 4;
    attr.max_entries = length;
    attr.inner_map_fd = like.as_raw_fd().unsigned_abs();
    let map = owned(call(BPF_MAP_CREATE, &attr)?)?;
    let text = CString::new(path.as_os_str().as_bytes())?;
    let fd = map.as_raw_fd().unsigned_abs();
    call(BPF_OBJ_PIN, &ObjectAttr { path: text.as_ptr() as u64, fd, flags: 0 }).map(drop)
}

/// Removes element `index` of an array of maps.
///
/// # Errors
/// As `bpf(2)`; that there was none is no error.
pub fn remove_inner(map: &impl AsFd, index: u32) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: map.as_fd().as_raw_fd().unsigned_abs(),
        pad: 0,
        key: std::ptr::from_ref(&index) as u64,
        value: 0,
        flags: 0,
    };
    match call(BPF_MAP_DELETE_ELEM, &attr) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A BPF file system that nothing but this descriptor leads to, and the path of its root.
///
/// # Errors
/// As `fsopen(2)` and `fsmount(2)`.
pub fn private_file_system() -> io::Result<(OwnedFd, PathBuf)> {
    let nothing = std::ptr::null::<libc::c_char>();
    // SAFETY: a name that ends in NUL, and no flags.
    let context = owned(check(unsafe { libc::syscall(libc::SYS_fsopen, c"bpf".as_ptr(), 0) })?)?;
    let fd = context.as_raw_fd();
    // SAFETY: this command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, nothing, nothing, 0) })?;
    // SAFETY: a context for which the file system was made, and no mount attributes.
    let mount = owned(check(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0) })?)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    Ok((mount, path))
}

/// What the link pinned at `path` is attached to: the index of an interface, the inode of a network
/// namespace, the id of a cgroup; 0 if that is gone.
///
/// # Errors
/// If no link is pinned there.
pub fn link_target(path: &Path) -> io::Result<u64> {
    let link = open(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| matches!(*name, "ifindex" | "netns_ino" | "cgroup_id"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| io::Error::other("not a link that is attached to anything"))
}

fn object(path: &Path, flags: u32) -> io::Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr { path: text.as_ptr() as u64, fd: 0, flags };
    owned(call(BPF_OBJ_GET, &attr)?)
}

/// Takes over the descriptor that a system call gave.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts `program` in the place of the link's present one, in one step.
///
/// # Errors
/// As `bpf(2)`; `ENOLINK` if what the link was attached to is gone.
pub fn replace(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let attr = LinkUpdateAttr {
        link_fd: link.as_fd().as_raw_fd().unsigned_abs(),
        program_fd: program.as_fd().as_raw_fd().unsigned_abs(),
        flags: 0,
        old_program_fd: 0,
    };
    call(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Runs `program` once on the frame `data`, without any network.
///
/// # Errors
/// As `bpf(2)`.
pub fn test_run(program: &impl AsFd, data: &[u8]) -> io::Result<u32> {
    test_run_times(program, data, 1).map(|(verdict, _)| verdict)
}

/// The same `count` times; the last verdict, and the time of one run, ns.
///
/// # Errors
/// As `bpf(2)`.
pub fn test_run_times(program: &impl AsFd, data: &[u8], count: u32) -> io::Result<(u32, u64)> {
    let mut attr = TestRunAttr {
        program_fd: program.as_fd().as_raw_fd().unsigned_abs(),
        data_size_in: u32::try_from(data.len()).map_err(io::Error::other)?,
        data_in: data.as_ptr() as u64,
        repeat: count,
        ..TestRunAttr::default()
    };
    call_mut(BPF_PROG_TEST_RUN, &mut attr)?;
    Ok((attr.retval, attr.duration.into()))
}

/// Has the kernel send `count` copies of `frame` through the XDP program `program`, `batch` together, as if a
/// driver had received them; what the program says of each is done (Linux 5.18).
///
/// # Errors
/// As `bpf(2)`.
pub fn test_run_live(program: &impl AsFd, frame: &[u8], count: u32, batch: u32) -> io::Result<()> {
    let mut attr = TestRunAttr {
        program_fd: program.as_fd().as_raw_fd().unsigned_abs(),
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr() as u64,
        repeat: count,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: batch,
        ..TestRunAttr::default()
    };
    call_mut(BPF_PROG_TEST_RUN, &mut attr)
}

/// Reads a hash map in batches. What is there for the whole walk is seen once, whatever else comes and goes.
#[derive(Debug)]
pub struct Walk<'a, K, V> {
    map: BorrowedFd<'a>,
    /// Where the kernel goes on; `None` at the beginning.
    position: Option<u32>,
    is_over: bool,
    keys: Vec<K>,
    values: Vec<V>,
}

/// Entries read by one call: 1 MiB or so, and far more than any bucket of a hash map holds.
const BATCH_ENTRIES: usize = 8192;

impl<'a, K: user::Pod, V: user::Pod> Walk<'a, K, V> {
    /// A walk through `map`, which must be a hash map of `K` and `V`.
    pub fn new(map: BorrowedFd<'a>) -> Self {
        // SAFETY: `Pod` promises validity of every bit pattern.
        let (key, value) = unsafe { (std::mem::zeroed::<K>(), std::mem::zeroed::<V>()) };
        let (keys, values) = (vec![key; BATCH_ENTRIES], vec![value; BATCH_ENTRIES]);
        Walk { map, position: None, is_over: false, keys, values }
    }

    /// The next entries; `None` after the last.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn advance(&mut self) -> io::Result<Option<impl Iterator<Item = (&K, &V)>>> {
        if self.is_over {
            return Ok(None);
        }
        let mut after = 0_u32;
        let mut attr = BatchAttr {
            in_batch: self.position.as_ref().map_or(0, |p| std::ptr::from_ref(p) as u64),
            out_batch: &raw mut after as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: u32::try_from(BATCH_ENTRIES).map_err(io::Error::other)?,
            map_fd: self.map.as_raw_fd().unsigned_abs(),
            element_flags: 0,
            flags: 0,
        };
        match call_mut(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(()) => self.position = Some(after),
            // The last ones.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.is_over = true,
            Err(error) => return Err(error),
        }
        let count = attr.count as usize;
        Ok(Some(self.keys.iter().zip(&self.values).take(count)))
    }
}

fn call_mut<T>(command: libc::c_int, attr: &mut T) -> io::Result<()> {
    // SAFETY: as in `call`; the kernel may write to `attr`, and to what its pointers point to, which the caller
    // made large enough and holds for the call.
    let rc =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), std::mem::size_of::<T>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Calls `bpf(2)`; `attr` must have the layout that is documented for `command`.
pub(super) fn call<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` has the layout that bpf(2) documents for `command`, lives for the call, and its
    // size is passed with it.
    let rc =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), std::mem::size_of::<T>()) };
    check(rc)
}

fn check(rc: libc::c_long) -> io::Result<libc::c_long> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// Makes `directory` on a BPF file system, mounting one at its parent if there is none.
///
/// # Errors
/// With the command to run, if it can't.
pub fn open_directory(directory: &Path) -> Result<()> {
    let Some(parent) = directory.parent() else {
        bail!("`{}` cannot hold pinned maps; set `bpffs` in [datapath]", directory.display());
    };
    let _ = fs::create_dir_all(parent);
    if !is_bpf_file_system(parent) {
        mount(Some("bpf"), parent, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| {
            format!("no BPF file system at `{0}`; as root: mount -t bpf bpf {0}", parent.display())
        })?;
    }
    for path in [directory.to_owned(), directory.join("maps"), directory.join("links")] {
        if let Err(error) = fs::create_dir(&path)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot create `{}`", path.display()));
        }
    }
    Ok(())
}

fn is_bpf_file_system(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS)
}

/// Removes every pin below `directory`, links first: what they hold is detached at once.
///
/// # Errors
/// If a file can't be removed.
pub fn remove_directory(directory: &Path) -> Result<()> {
    for part in ["links", "maps"] {
        let path = directory.join(part);
        let Ok(entries) = fs::read_dir(&path) else { continue };
        for entry in entries {
            let path = entry?.path();
            fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
        fs::remove_dir(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", directory.display()))
        }
        _ => Ok(()),
    }
}
