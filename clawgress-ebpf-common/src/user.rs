//! User-space access to maps whose descriptors were handed over, by plain `bpf(2)` calls. A process
//! without capabilities may look entries up, or change them, through a descriptor that was opened for it
//! (Linux 6.0 and later, where `unprivileged_bpf_disabled` only restricts creating maps and loading
//! programs).
//!
//! Must never create, pin or attach anything: that is the datapath's work.

use core::marker::PhantomData;
use core::mem::{MaybeUninit, size_of};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::{Address, Dial, Flow, FlowKey};

/// Plain old data: any bit pattern is valid and there is no padding.
///
/// # Safety
/// The implementor has no padding bytes, no pointers, and is valid for every bit pattern.
pub unsafe trait Pod: Copy + 'static {}

/// The map address of `ip`.
#[must_use]
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The IP address of a map address: IPv4 if mapped.
#[must_use]
pub fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// A hash map reached through a descriptor.
#[derive(Debug)]
pub struct HashMapFd<K: Pod, V: Pod> {
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

// SAFETY: no padding, and every bit pattern is a number.
unsafe impl Pod for u64 {}

/// The flow table, as L7 sees it.
pub type FlowTable = HashMapFd<FlowKey, Flow>;

/// The sockets that L7 is connecting, and for whom: it may add and remove, and see nothing.
pub type DialTable = HashMapFd<u64, Dial>;

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Commands of `bpf(2)` (linux/bpf.h).
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;

impl<K: Pod, V: Pod> HashMapFd<K, V> {
    /// Wraps a map descriptor, after checking that key and value sizes are the ones of `K` and `V`.
    ///
    /// # Errors
    /// If the descriptor is no map, or one of another layout.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let info = std::fs::read_to_string(std::format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        let field = |name: &str| {
            info.lines().find_map(|l| l.strip_prefix(name)).and_then(|v| v.trim().parse::<usize>().ok())
        };
        if field("key_size:") != Some(size_of::<K>()) || field("value_size:") != Some(size_of::<V>()) {
            return Err(io::Error::other("the descriptor is not a map of the expected layout"));
        }
        Ok(HashMapFd { fd, types: PhantomData })
    }

    /// Looks `key` up.
    ///
    /// # Errors
    /// Any error of `bpf(2)` but `ENOENT`, which is `None`.
    pub fn lookup(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: the kernel writes a value of the size that `from_fd` compared with the map's.
        match unsafe { self.call(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr() as u64) } {
            // SAFETY: the call succeeded, so the kernel filled the whole value; `V` is `Pod`.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// Any error of `bpf(2)`; `E2BIG` if the map is full.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: the kernel reads a value of the size that `from_fd` compared with the map's.
        unsafe { self.call(BPF_MAP_UPDATE_ELEM, key, core::ptr::from_ref(value) as u64) }
    }

    /// Removes `key`.
    ///
    /// # Errors
    /// Any error of `bpf(2)`; `ENOENT` if it is not there.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        // SAFETY: the command takes no value.
        unsafe { self.call(BPF_MAP_DELETE_ELEM, key, 0) }
    }

    /// # Safety
    /// `value` is what `command` wants: nothing, or the address of a `V` to read or to write.
    unsafe fn call(&self, command: libc::c_int, key: &K, value: u64) -> io::Result<()> {
        let attr = ElementAttr {
            map_fd: self.fd.as_raw_fd().unsigned_abs(),
            pad: 0,
            key: core::ptr::from_ref(key) as u64,
            value,
            flags: 0,
        };
        // SAFETY: `attr` has the layout bpf(2) documents for map elements; the key is of the size that
        // `from_fd` compared with the map's, and the value is the caller's promise.
        let rc = unsafe {
            libc::syscall(libc::SYS_bpf, command, core::ptr::from_ref(&attr), size_of::<ElementAttr>())
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
