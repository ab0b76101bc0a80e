//! The embedded kernel objects: loading them, with maps pinned or not. That of packets has every map but those that
//! sockets' programs alone use. A pinned map of another ABI version is never reused.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use clawgress_ebpf_common::image::{PAGE_BYTES, PAGES, Page};
use clawgress_ebpf_common::{ABI_VERSION, map};
use nix::sys::statfs::statfs;

use super::bpf;

/// The early drop on agents' interfaces, as the build script left it.
static EARLY: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/early.o"));
/// The other programs of agents' interfaces.
static PACKETS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/packets.o"));
/// The programs of this machine's own sockets.
static SOCKETS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sockets.o"));

/// Every map of the objects.
pub const MAPS: [&str; 29] = [
    map::GENERATION,
    map::IMAGES,
    map::SELF,
    map::SELF_FILTER,
    map::FLOWS,
    map::SHARES,
    map::REJECTS,
    map::BUCKETS,
    map::BUCKET_SHARES,
    map::PACED,
    map::UNBOUND,
    map::UNBOUND_BUCKETS,
    map::LEARNED,
    map::LEARNED_BY,
    map::LISTENERS,
    map::EVENTS,
    map::COUNTERS,
    map::SEEN,
    map::EPOCH,
    map::RECENT,
    map::PACE,
    map::CGROUPS,
    map::QUARANTINE,
    map::AGENTS,
    map::DIALS,
    map::RESOLVERS,
    map::INTERFACES,
    map::LEASE,
    map::META,
];

/// Images there are: the live one, and the one that is being written.
const IMAGE_SLOTS: u32 = 2;

/// How often a program is loaded that a signal interrupts: as often as libbpf does it.
const VERIFY_TRIES: u32 = 5;

/// Names of the programs.
pub mod program {
    /// XDP on agents' interfaces.
    pub const XDP: &str = "claw_xdp";
    /// TC ingress on agents' interfaces.
    pub const TC_IN: &str = "claw_tc_in";
    /// TC egress on agents' interfaces.
    pub const TC_OUT: &str = "claw_tc_out";
    /// Test-run, never attached: judges a live flow again.
    pub const CONFIRM: &str = "claw_confirm";
    /// Listener lookup of the network namespace.
    pub const LOOKUP: &str = "claw_lookup";
    /// cgroup socket address hooks.
    pub const SOCK_ADDR: [&str; 4] = ["claw_connect4", "claw_connect6", "claw_sendmsg4", "claw_sendmsg6"];
    /// cgroup socket creation hook.
    pub const SOCK: &str = "claw_sock";
    /// cgroup packet programs, out and in.
    pub const SKB: [&str; 2] = ["claw_skb_out", "claw_skb_in"];
    /// Socket hooks and packet programs of the proxy's own cgroup: connect, sendmsg, out and in.
    pub const DIAL: [&str; 6] =
        ["claw_dial4", "claw_dial6", "claw_ask4", "claw_ask6", "claw_dial_out", "claw_dial_in"];
}

/// All objects, loaded.
#[derive(Debug)]
pub struct Objects {
    early: Ebpf,
    packets: Ebpf,
    sockets: Ebpf,
}

// === impl Objects ===

impl Objects {
    /// A program.
    #[must_use]
    pub fn program(&self, name: &str) -> Option<&Program> {
        [&self.early, &self.packets, &self.sockets].into_iter().find_map(|object| object.program(name))
    }

    /// A program, to be attached.
    pub fn program_mut(&mut self, name: &str) -> Option<&mut Program> {
        let Objects { early, packets, sockets } = self;
        [early, packets, sockets].into_iter().find_map(|object| object.program_mut(name))
    }

    /// Every program.
    pub fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.early.programs().chain(self.packets.programs()).chain(self.sockets.programs())
    }

    /// Every map that was not taken; those that several objects have, several times.
    pub fn maps(&self) -> impl Iterator<Item = (&str, &Map)> {
        self.packets.maps().chain(self.sockets.maps())
    }

    /// A map that was not taken.
    #[must_use]
    pub fn map(&self, name: &str) -> Option<&Map> {
        self.packets.map(name)
    }

    /// As [`Objects::map`], to be written.
    pub fn map_mut(&mut self, name: &str) -> Option<&mut Map> {
        self.packets.map_mut(name)
    }

    /// Takes a map out.
    pub fn take_map(&mut self, name: &str) -> Option<Map> {
        self.packets.take_map(name).or_else(|| self.sockets.take_map(name))
    }
}

/// Loads maps and programs. With `directory`, maps are pinned below it, and those already there are
/// reused.
///
/// # Errors
/// If the kernel refuses, with its verifier's words, or maps of another version are pinned there.
pub fn load(directory: Option<&Path>) -> Result<Objects> {
    if let Some(directory) = directory {
        ensure!(!is_other_version(directory), "the maps pinned at `{}` are not ours", directory.display());
    }
    // Pins are how the objects come to the same maps. Where nothing is to be pinned, they are ones that nobody
    // else can reach, and are gone after this.
    let private = match directory {
        Some(_) => None,
        None => Some(bpf::private_file_system().context("cannot make a private BPF file system")?),
    };
    let place = |name: &str| match (directory, &private) {
        (Some(directory), _) => pin(directory, name),
        (None, private) => private.as_ref().map(|(_, root)| root.join(name)).unwrap_or_default(),
    };
    // The array of maps has to be there before an object is loaded: see its declaration.
    let images = place(map::IMAGES);
    if bpf::open(&images).is_err() {
        bpf::create_array_of_arrays(map::IMAGES, IMAGE_SLOTS, PAGES, PAGE_BYTES as u32, &images)
            .with_context(|| format!("cannot create the map at `{}`", images.display()))?;
    }
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, place(name));
    }
    let mut objects = Objects {
        early: loaded(&mut loader, EARLY)?,
        packets: loaded(&mut loader, PACKETS)?,
        sockets: loaded(&mut loader, SOCKETS)?,
    };
    let meta = objects.map_mut(map::META).context("the object has no version map")?;
    Array::<_, u32>::try_from(meta)?.set(0, ABI_VERSION, 0)?;
    Ok(objects)
}

fn loaded(loader: &mut EbpfLoader<'_>, object: &[u8]) -> Result<Ebpf> {
    let mut ebpf =
        loader.load(object).context("cannot create the kernel maps (is this root, Linux 6.1 or later?)")?;
    for (name, program) in ebpf.programs_mut() {
        verified(name, program).with_context(|| format!("the kernel refused program `{name}`"))?;
    }
    Ok(ebpf)
}

/// Loads a program. A signal that comes while the kernel verifies it, for whatever thread or debugger, ends that with
/// `EAGAIN`, which says nothing of the program.
fn verified(name: &str, program: &mut Program) -> Result<()> {
    for left in (0..VERIFY_TRIES).rev() {
        let loaded = match program {
            Program::Xdp(p) => p.load(),
            Program::SchedClassifier(p) => p.load(),
            Program::SkLookup(p) => p.load(),
            Program::CgroupSockAddr(p) => p.load(),
            Program::CgroupSock(p) => p.load(),
            Program::CgroupSkb(p) => p.load(),
            _ => return Err(anyhow!("kernel program `{name}` is of a kind nobody loads")),
        };
        match loaded {
            Err(ProgramError::LoadError { io_error, .. })
                if left > 0 && io_error.kind() == io::ErrorKind::WouldBlock =>
            {
                tracing::info!(name, "the kernel's verifier was interrupted; again");
            }
            loaded => return Ok(loaded?),
        }
    }
    Err(anyhow!("its verifier was interrupted {VERIFY_TRIES} times"))
}

/// An array for an image: of zeroes, which deny everything, until it is written.
///
/// # Errors
/// If the kernel refuses, most often for want of memory.
pub fn image_map() -> Result<Array<MapData, Page>> {
    Array::create(PAGES, 0).context("cannot create a map for the tables")
}

/// The map of images, by its true type.
pub type Images = ArrayOfMaps<MapData, Array<MapData, Page>>;

/// The map of images, and its descriptor.
///
/// # Errors
/// If it isn't there or has another layout.
pub fn take_images(objects: &mut Objects) -> Result<(Images, OwnedFd)> {
    let declared = objects.take_map(map::IMAGES).context("the object has no map of images")?;
    let Map::Array(data) = declared else { bail!("the map of images is declared otherwise") };
    let fd = data.fd().as_fd().try_clone_to_owned()?;
    let map = Map::from_map_data(MapData::from_fd(fd.try_clone()?)?)?;
    Ok((ArrayOfMaps::try_from(map).context("the map of images has another layout")?, fd))
}

/// Where the map `name` is pinned.
#[must_use]
pub fn pin(directory: &Path, name: &str) -> PathBuf {
    directory.join("maps").join(name)
}

/// Takes a map out of the object, checked for its type and sizes.
///
/// # Errors
/// If it isn't there or has another layout.
pub fn take<T: TryFrom<Map, Error = aya::maps::MapError>>(objects: &mut Objects, name: &str) -> Result<T> {
    let map = objects.take_map(name).with_context(|| format!("the object has no map `{name}`"))?;
    T::try_from(map).with_context(|| format!("map `{name}` has another layout"))
}

/// Another descriptor of a hash map or array that is still in the object.
///
/// # Errors
/// If it isn't there, is of another kind, or there are no more descriptors.
pub fn descriptor(objects: &Objects, name: &str) -> Result<OwnedFd> {
    match objects.map(name) {
        Some(Map::Array(data) | Map::HashMap(data)) => Ok(data.fd().as_fd().try_clone_to_owned()?),
        _ => Err(anyhow!("the object has no map `{name}`, or one of another kind")),
    }
}

/// Another descriptor of a program.
///
/// # Errors
/// If it isn't there or not loaded, or there are no more descriptors.
pub fn program_descriptor(objects: &Objects, name: &str) -> Result<OwnedFd> {
    match objects.program(name) {
        Some(Program::SchedClassifier(p)) => Ok(p.fd()?.as_fd().try_clone_to_owned()?),
        _ => Err(anyhow!("the object has no program `{name}`, or one of another kind")),
    }
}

/// Whether maps are pinned there, and not of this version.
#[must_use]
pub fn is_other_version(directory: &Path) -> bool {
    let path = pin(directory, map::META);
    if statfs(&path).is_err() {
        return false;
    }
    let version = MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .and_then(|meta| Array::<_, u32>::try_from(meta)?.get(&0, 0));
    version.ok() != Some(ABI_VERSION)
}
