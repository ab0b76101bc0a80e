//! Attaching programs and keeping them attached: every link is pinned, so that traffic stays governed
//! when this process is gone, and replaced in one step when it comes back.
//!
//! Must never leave an agents' interface without its programs in between.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::programs::links::FdLink;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, LinkOrder, ProgramError,
    SchedClassifier, SkLookup, TcAttachType, Xdp, XdpMode,
};
use aya::util::KernelVersion;
use nix::errno::Errno;

use super::bpf;
use super::object::{Objects, program};

/// First kernel with tcx links; before it, programs hang on a clsact qdisc.
const TCX_SINCE: (u8, u8) = (6, 6);
/// Where our filter stands on a clsact qdisc: first.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);
/// How XDP is attached.
const NATIVE: &str = "native";
const OFF: &str = "off";
/// The network namespace of the thread that asks.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcMode {
    /// A tcx link, pinned.
    Tcx,
    /// A filter on a clsact qdisc, which stays by itself.
    Clsact,
}

/// How an interface's programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// `native`, or `off` where the driver has no XDP.
    pub xdp: &'static str,
    /// `tcx` or `clsact`.
    pub tc: &'static str,
}

/// A link that is not where it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The program and its place, in words.
    pub what: String,
    /// Where its link is, or would be, pinned.
    pins: Vec<PathBuf>,
}

impl Attached {
    /// Whether TC judges alone.
    #[must_use]
    pub fn is_without_xdp(&self) -> bool {
        self.xdp == OFF
    }
}

impl TcMode {
    /// What this kernel can do.
    #[must_use]
    pub fn of_kernel() -> Self {
        let (major, minor) = TCX_SINCE;
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(major, minor, 0) => TcMode::Tcx,
            _ => TcMode::Clsact,
        }
    }
}

/// Attaches, or replaces what is attached, on each of `interfaces` (name to index), and detaches from
/// all others.
///
/// # Errors
/// If the kernel refuses one; the others are attached all the same.
pub fn interfaces(
    objects: &mut Objects,
    directory: &Path,
    interfaces: &BTreeMap<String, u32>,
    mode: TcMode,
) -> Result<BTreeMap<String, Attached>> {
    let links = directory.join("links");
    let mut attached = BTreeMap::new();
    let mut failure = Ok(());
    for (name, &index) in interfaces {
        match interface(objects, &links, name, index, mode) {
            Ok(how) => drop(attached.insert(name.clone(), how)),
            Err(error) => failure = failure.and(Err(error)),
        }
    }
    remove_stale(&links, interfaces)?;
    failure.map(|()| attached)
}

fn interface(objects: &mut Objects, links: &Path, name: &str, index: u32, mode: TcMode) -> Result<Attached> {
    // TC first: from then on nothing passes unjudged, with or without XDP.
    classifier(objects, links, name, index, mode, TcAttachType::Ingress)?;
    classifier(objects, links, name, index, mode, TcAttachType::Egress)?;
    let xdp = xdp(objects, links, name, index)?;
    Ok(Attached { xdp, tc: if mode == TcMode::Tcx { "tcx" } else { "clsact" } })
}

/// Removes clsact filters, which no pin holds.
pub fn detach_clsact(interfaces: impl Iterator<Item = impl AsRef<str>>) {
    for interface in interfaces {
        // Most often there is none; whatever else fails leaves a filter that still judges.
        let _ = tc::qdisc_detach_program(interface.as_ref(), TcAttachType::Ingress, program::TC_IN);
        let _ = tc::qdisc_detach_program(interface.as_ref(), TcAttachType::Egress, program::TC_OUT);
    }
}

/// Attaches the listener lookup to this network namespace.
///
/// # Errors
/// If the kernel refuses.
pub fn lookup(objects: &mut Objects, directory: &Path) -> Result<()> {
    let pin = directory.join("links").join(program::LOOKUP);
    let program: &mut SkLookup = find(objects, program::LOOKUP)?;
    if !is_replaced(&pin, program.fd()?)? {
        let namespace = File::open(NAMESPACE).with_context(|| format!("cannot open `{NAMESPACE}`"))?;
        let id = program.attach(namespace).context("cannot attach to listener lookup")?;
        pin_link(program.take_link(id)?.into(), &pin)?;
    }
    Ok(())
}

/// The links of interfaces and namespace that are not pinned, or hang on nothing or something else.
/// Filters on clsact have none; [`renew_clsact`] looks after them. Nor has XDP on the interfaces `without_xdp`.
///
/// # Errors
/// If the namespace can't be told.
pub fn missing(
    directory: &Path,
    interfaces: &BTreeMap<String, u32>,
    without_xdp: &BTreeSet<u32>,
    mode: TcMode,
) -> Result<Vec<Missing>> {
    let links = directory.join("links");
    let mut missing = Vec::new();
    let namespace = fs::metadata(NAMESPACE).with_context(|| format!("cannot read `{NAMESPACE}`"))?.ino();
    look(&mut missing, program::LOOKUP.to_owned(), vec![links.join(program::LOOKUP)], namespace);
    for (name, &index) in interfaces {
        let target = u64::from(index);
        if mode == TcMode::Tcx {
            for (which, pin) in [(program::TC_IN, "tcin"), (program::TC_OUT, "tcout")] {
                let pins = vec![links.join(format!("{pin}-{index}"))];
                look(&mut missing, format!("{which} on `{name}`"), pins, target);
            }
        }
        if !without_xdp.contains(&index) {
            look(&mut missing, format!("{} on `{name}`", program::XDP), vec![xdp_pin(&links, index)], target);
        }
    }
    Ok(missing)
}

/// The hooks of local workloads that don't hold `cgroup`.
///
/// # Errors
/// If the cgroup can't be looked at.
pub fn missing_hooks(directory: &Path, cgroup: &Path) -> Result<Vec<Missing>> {
    let links = directory.join("links");
    let target = match fs::metadata(cgroup) {
        Ok(metadata) => metadata.ino(),
        // Removed by somebody, and the links hang on nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => u64::MAX,
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", cgroup.display())),
    };
    let mut missing = Vec::new();
    for name in program::SKB.into_iter().chain(program::SOCK_ADDR).chain([program::SOCK]) {
        look(&mut missing, format!("{name} on local workloads"), vec![links.join(name)], target);
    }
    Ok(missing)
}

fn look(missing: &mut Vec<Missing>, what: String, pins: Vec<PathBuf>, target: u64) {
    if !pins.iter().any(|pin| bpf::link_target(pin).is_ok_and(|found| found == target)) {
        missing.push(Missing { what, pins });
    }
}

/// Removes the pins of links that are where they don't belong, so that others can take their place.
///
/// # Errors
/// If one can't be removed.
pub fn forget(missing: &[Missing]) -> Result<()> {
    for pin in missing.iter().flat_map(|m| &m.pins) {
        match fs::remove_file(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove `{}`", pin.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Puts the filters on clsact in their place once more, and tells which were not there.
///
/// # Errors
/// If the kernel refuses.
pub fn renew_clsact(objects: &mut Objects, interfaces: &BTreeMap<String, u32>) -> Result<Vec<String>> {
    let mut added = Vec::new();
    for name in interfaces.keys() {
        for (which, way) in [(program::TC_IN, TcAttachType::Ingress), (program::TC_OUT, TcAttachType::Egress)]
        {
            let program: &mut SchedClassifier = find(objects, which)?;
            if clsact(program, name, way).with_context(|| format!("cannot attach `{which}` to `{name}`"))? {
                added.push(format!("{which} on `{name}` was detached, and was attached again"));
            }
        }
    }
    Ok(added)
}

/// Attaches the packet programs and socket hooks of local workloads to a cgroup and all below it.
///
/// # Errors
/// If the kernel refuses.
pub fn cgroup(objects: &mut Objects, directory: &Path, cgroup: &Path) -> Result<()> {
    let links = directory.join("links");
    let file = File::open(cgroup).with_context(|| format!("cannot open cgroup `{}`", cgroup.display()))?;
    for (name, way) in
        program::SKB.into_iter().zip([CgroupSkbAttachType::Egress, CgroupSkbAttachType::Ingress])
    {
        let program: &mut CgroupSkb = find(objects, name)?;
        let pin = links.join(name);
        if !is_replaced(&pin, program.fd()?)? {
            let id = program.attach(&file, way, CgroupAttachMode::Single)?;
            pin_link(program.take_link(id)?.try_into()?, &pin)?;
        }
    }
    for name in program::SOCK_ADDR {
        let program: &mut CgroupSockAddr = find(objects, name)?;
        let pin = links.join(name);
        if !is_replaced(&pin, program.fd()?)? {
            let id = program.attach(&file, CgroupAttachMode::Single)?;
            pin_link(program.take_link(id)?.try_into()?, &pin)?;
        }
    }
    let program: &mut CgroupSock = find(objects, program::SOCK)?;
    let pin = links.join(program::SOCK);
    if !is_replaced(&pin, program.fd()?)? {
        let id = program.attach(&file, CgroupAttachMode::Single)?;
        pin_link(program.take_link(id)?.try_into()?, &pin)?;
    }
    Ok(())
}

fn find<'a, T>(objects: &'a mut Objects, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = objects.program_mut(name).with_context(|| format!("the object has no program `{name}`"))?;
    Ok(program.try_into()?)
}

fn xdp_pin(links: &Path, index: u32) -> PathBuf {
    links.join(format!("xdp-native-{index}"))
}

/// Where the driver has no XDP, TC alone judges, which it could anyway. The kernel's own stand-in ("generic")
/// would come after the packet's buffer was made, so it saves nothing; and since Linux 6.8 the TC programs after
/// it see a copy whose start is not the Ethernet header's.
fn xdp(objects: &mut Objects, links: &Path, name: &str, index: u32) -> Result<&'static str> {
    let generic = links.join(format!("xdp-generic-{index}"));
    match fs::remove_file(&generic) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove `{}`", generic.display()));
        }
        _ => {}
    }
    let program: &mut Xdp = find(objects, program::XDP)?;
    let pin = xdp_pin(links, index);
    if is_replaced(&pin, program.fd()?)? {
        return Ok(NATIVE);
    }
    match program.attach_to_if_index(index, XdpMode::Driver) {
        Ok(id) => {
            pin_link(program.take_link(id)?.try_into()?, &pin)?;
            Ok(NATIVE)
        }
        Err(error) if is_taken(&error) => {
            Err(error).with_context(|| format!("cannot attach XDP to `{name}`: another program is there"))
        }
        Err(error) => {
            tracing::info!(interface = name, %error, "no native XDP; TC judges alone");
            Ok(OFF)
        }
    }
}

/// Whether something else has the hook.
fn is_taken(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(call) = error else { return false };
    matches!(call.io_error.raw_os_error().map(Errno::from_raw), Some(Errno::EBUSY | Errno::EEXIST))
}

fn classifier(
    objects: &mut Objects,
    links: &Path,
    name: &str,
    index: u32,
    mode: TcMode,
    way: TcAttachType,
) -> Result<()> {
    let (which, pin) = match way {
        TcAttachType::Egress => (program::TC_OUT, links.join(format!("tcout-{index}"))),
        _ => (program::TC_IN, links.join(format!("tcin-{index}"))),
    };
    let program: &mut SchedClassifier = find(objects, which)?;
    let context = || format!("cannot attach `{which}` to `{name}`");
    if mode == TcMode::Clsact {
        return clsact(program, name, way).map(drop).with_context(context);
    }
    if is_replaced(&pin, program.fd()?)? {
        return Ok(());
    }
    let id = program
        .attach_with_options(name, way, TcAttachOptions::TcxOrder(LinkOrder::first()))
        .with_context(context)?;
    pin_link(program.take_link(id)?.try_into()?, &pin)
}

/// A filter at a fixed place, so that the next process replaces it. Whether there was none.
fn clsact(program: &mut SchedClassifier, name: &str, way: TcAttachType) -> Result<bool> {
    // It exists already, most often.
    let _ = tc::qdisc_add_clsact(name);
    let old = SchedClassifierLink::attached(name, way, CLSACT_PRIORITY, CLSACT_HANDLE, None)?;
    let (id, is_new) = match program.attach_to_link(old) {
        Ok(id) => (id, false),
        Err(_) => {
            let options =
                NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, ..NlOptions::default() };
            (program.attach_with_options(name, way, TcAttachOptions::Netlink(options))?, true)
        }
    };
    // Dropping the link would remove the filter, and it has to outlive this process.
    std::mem::forget(program.take_link(id)?);
    Ok(is_new)
}

/// Whether a link is pinned there and now runs `program`. A link whose interface or cgroup is gone is
/// removed.
fn is_replaced(pin: &Path, program: &aya::programs::ProgramFd) -> Result<bool> {
    let link = match bpf::open(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot open `{}`", pin.display())),
    };
    match bpf::replace(&link, program) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::ENOLINK as i32) => {
            fs::remove_file(pin).with_context(|| format!("cannot remove `{}`", pin.display()))?;
            Ok(false)
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot replace the program at `{}`", pin.display()))
        }
    }
}

fn pin_link(link: FdLink, pin: &Path) -> Result<()> {
    link.pin(pin).with_context(|| format!("cannot pin `{}`", pin.display()))?;
    Ok(())
}

/// Removes links of interfaces that are no longer the agents'.
fn remove_stale(links: &Path, interfaces: &BTreeMap<String, u32>) -> Result<()> {
    for path in pins(links)? {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some((_, index)) = name.rsplit_once('-') else { continue };
        let Ok(index) = index.parse::<u32>() else { bail!("unknown file `{}`", path.display()) };
        if !interfaces.values().any(|&i| i == index) {
            fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
    }
    Ok(())
}

fn pins(links: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(links).with_context(|| format!("cannot list `{}`", links.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
