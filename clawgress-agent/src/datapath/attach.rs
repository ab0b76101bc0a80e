//! Attaching programs and keeping them attached: every link is pinned, so that traffic stays governed
//! when this process is gone, and replaced in one step when it comes back.
//!
//! Must never leave an agents' interface without its programs in between.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    Xdp, XdpMode,
};
use aya::util::KernelVersion;
use nix::errno::Errno;

use super::bpf;
use super::object::program;

/// First kernel with tcx links; before it, programs hang on a clsact qdisc.
const TCX_SINCE: (u8, u8) = (6, 6);
/// Where our filter stands on a clsact qdisc: first.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

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
    /// `native` or `generic`.
    pub xdp: &'static str,
    /// `tcx` or `clsact`.
    pub tc: &'static str,
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
/// If the kernel refuses.
pub fn interfaces(
    ebpf: &mut Ebpf,
    directory: &Path,
    interfaces: &BTreeMap<String, u32>,
    mode: TcMode,
) -> Result<BTreeMap<String, Attached>> {
    let links = directory.join("links");
    let mut attached = BTreeMap::new();
    for (name, &index) in interfaces {
        // TC first: from then on nothing passes unjudged, with or without XDP.
        classifier(ebpf, &links, name, index, mode, TcAttachType::Ingress)?;
        classifier(ebpf, &links, name, index, mode, TcAttachType::Egress)?;
        let xdp = xdp(ebpf, &links, name, index)?;
        let tc = if mode == TcMode::Tcx { "tcx" } else { "clsact" };
        attached.insert(name.clone(), Attached { xdp, tc });
    }
    remove_stale(&links, interfaces)?;
    Ok(attached)
}

/// Removes clsact filters, which no pin holds.
pub fn detach_clsact(interfaces: impl Iterator<Item = impl AsRef<str>>) {
    for interface in interfaces {
        // Most often there is none; whatever else fails leaves a filter that still judges.
        let _ = tc::qdisc_detach_program(interface.as_ref(), TcAttachType::Ingress, program::TC_IN);
        let _ = tc::qdisc_detach_program(interface.as_ref(), TcAttachType::Egress, program::TC_OUT);
    }
}

/// Attaches the socket hooks to a cgroup and all below it.
///
/// # Errors
/// If the kernel refuses.
pub fn cgroup(ebpf: &mut Ebpf, directory: &Path, cgroup: &Path) -> Result<()> {
    let links = directory.join("links");
    let file = File::open(cgroup).with_context(|| format!("cannot open cgroup `{}`", cgroup.display()))?;
    for name in program::SOCK_ADDR {
        let program: &mut CgroupSockAddr = find(ebpf, name)?;
        let pin = links.join(name);
        if !is_replaced(&pin, program.fd()?)? {
            let id = program.attach(&file, CgroupAttachMode::Single)?;
            pin_link(program.take_link(id)?.try_into()?, &pin)?;
        }
    }
    let program: &mut CgroupSock = find(ebpf, program::SOCK)?;
    let pin = links.join(program::SOCK);
    if !is_replaced(&pin, program.fd()?)? {
        let id = program.attach(&file, CgroupAttachMode::Single)?;
        pin_link(program.take_link(id)?.try_into()?, &pin)?;
    }
    Ok(())
}

fn find<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program `{name}`"))?;
    Ok(program.try_into()?)
}

fn xdp(ebpf: &mut Ebpf, links: &Path, name: &str, index: u32) -> Result<&'static str> {
    let program: &mut Xdp = find(ebpf, program::XDP)?;
    for kind in ["native", "generic"] {
        if is_replaced(&links.join(format!("xdp-{kind}-{index}")), program.fd()?)? {
            return Ok(kind);
        }
    }
    let (kind, id) = match program.attach_to_if_index(index, XdpMode::Driver) {
        Ok(id) => ("native", id),
        Err(error) => {
            tracing::info!(interface = name, %error, "no native XDP; using generic");
            let id = program
                .attach_to_if_index(index, XdpMode::Skb)
                .with_context(|| format!("cannot attach XDP to `{name}`; is another program there?"))?;
            ("generic", id)
        }
    };
    pin_link(program.take_link(id)?.try_into()?, &links.join(format!("xdp-{kind}-{index}")))?;
    Ok(kind)
}

fn classifier(
    ebpf: &mut Ebpf,
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
    let program: &mut SchedClassifier = find(ebpf, which)?;
    let context = || format!("cannot attach `{which}` to `{name}`");
    if mode == TcMode::Clsact {
        return clsact(program, name, way).with_context(context);
    }
    if is_replaced(&pin, program.fd()?)? {
        return Ok(());
    }
    let id = program
        .attach_with_options(name, way, TcAttachOptions::TcxOrder(LinkOrder::first()))
        .with_context(context)?;
    pin_link(program.take_link(id)?.try_into()?, &pin)
}

/// A filter at a fixed place, so that the next process replaces it.
fn clsact(program: &mut SchedClassifier, name: &str, way: TcAttachType) -> Result<()> {
    // It exists already, most often.
    let _ = tc::qdisc_add_clsact(name);
    let old = SchedClassifierLink::attached(name, way, CLSACT_PRIORITY, CLSACT_HANDLE, None)?;
    let id = match program.attach_to_link(old) {
        Ok(id) => id,
        Err(_) => program.attach_with_options(
            name,
            way,
            TcAttachOptions::Netlink(NlOptions {
                priority: CLSACT_PRIORITY,
                handle: CLSACT_HANDLE,
                ..NlOptions::default()
            }),
        )?,
    };
    // Dropping the link would remove the filter, and it has to outlive this process.
    std::mem::forget(program.take_link(id)?);
    Ok(())
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
