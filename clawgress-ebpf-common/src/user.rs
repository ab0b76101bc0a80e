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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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

/// The index of the interface that an accepted TCP connection came in by: that of the packet which completed it.
///
/// For IPv4 the kernel tells it as the packet information of a stream (`IP_PKTOPTIONS`, which must be asked for), for
/// IPv6 as the interface of multicasts, which an accepted socket has from there (net/ipv4/tcp_ipv4.c and
/// net/ipv6/tcp_ipv6.c, `tcp_v4_syn_recv_sock` and `tcp_v6_syn_recv_sock`).
///
/// # Errors
/// If it can't be told.
pub fn ingress(connection: impl AsFd) -> io::Result<u32> {
    let connection = connection.as_fd();
    let told = match option::<libc::c_int>(connection, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        libc::AF_INET => {
            set(connection, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            let told: PacketOptions = option(connection, libc::IPPROTO_IP, IP_PKTOPTIONS)?;
            let is_it = (told.level, told.kind) == (libc::IPPROTO_IP, libc::IP_PKTINFO);
            if is_it { told.ifindex } else { 0 }
        }
        _ => option(connection, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF)?,
    };
    let unknown = || io::Error::other("the kernel doesn't tell by which interface a connection came");
    u32::try_from(told).ok().filter(|index| *index != 0).ok_or_else(unknown)
}

/// `IP_PKTOPTIONS` (linux/in.h).
const IP_PKTOPTIONS: libc::c_int = 9;

/// What it gives first: a control message's header, and `in_pktinfo`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PacketOptions {
    length: usize,
    level: libc::c_int,
    kind: libc::c_int,
    ifindex: libc::c_int,
    addresses: [u32; 2],
    pad: u32,
}

// SAFETY: numbers and explicit padding.
unsafe impl Pod for PacketOptions {}
// SAFETY: a number.
unsafe impl Pod for libc::c_int {}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let value = core::ptr::from_ref(&value).cast();
    // SAFETY: the kernel reads one `c_int`, which lives until the call returns.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, C_INT_BYTES) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const C_INT_BYTES: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;

/// An option whose value is a `T`, or begins with zeroes where the kernel gives less.
fn option<T: Pod>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut bytes = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `bytes`, the size of `T`.
    let rc = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut bytes)
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroes, or what the kernel wrote; `T` is `Pod`.
    Ok(unsafe { value.assume_init() })
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
