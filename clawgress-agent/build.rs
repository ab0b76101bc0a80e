//! Builds the kernel programs from source with a child cargo, strips them and leaves them in
//! `OUT_DIR/*.o` for the datapath role to embed.
//!
//! The child has a target directory of its own beside the main one, so that check, test and release
//! builds share it. Unstable features are switched on for that child alone.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The objects, each a binary of `clawgress-ebpf`.
const OBJECTS: [&str; 3] = ["early", "packets", "sockets"];

/// Largest stripped object, bytes: a promise to appliances, and a hint when inlining runs away.
const OBJECT_BYTES_MAX: u64 = 64 * 1024;

/// The compiler release whose Debian source package the toolchain directory may hold.
const RUST_RELEASE: &str = "1.95.0";

/// Variables of the outer build that must not reach the child: flags and wrappers meant for the host.
const OUTER_VARIABLES: &[&str] = &[
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
];

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    for path in ["clawgress-ebpf/src", "clawgress-ebpf/Cargo.toml", "clawgress-ebpf-common", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CLAWGRESS_TOOLCHAIN_DIR");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let toolchain = Toolchain::find()?;
    let built = toolchain.build(&root, &target_directory(&out))?;
    for name in OBJECTS {
        let object = out.join(name).with_extension("o");
        toolchain.strip(&built.join(name), &object)?;
        let bytes = fs::metadata(&object)?.len();
        if bytes > OBJECT_BYTES_MAX {
            return Err(
                format!("kernel object `{name}` has {bytes} bytes, more than {OBJECT_BYTES_MAX}").into()
            );
        }
    }
    Ok(())
}

fn variable(name: &str) -> Result<OsString, Error> {
    env::var_os(name).ok_or_else(|| format!("`{name}` is not set; run this through cargo").into())
}

/// `ebpf` in the main target directory, which cargo marks with a `CACHEDIR.TAG`.
fn target_directory(out: &Path) -> PathBuf {
    let main = out.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file());
    main.unwrap_or(out).join("ebpf")
}

/// What `cargo xtask setup` installs, and the compiler.
struct Toolchain {
    rustc: OsString,
    sysroot: PathBuf,
    library: PathBuf,
    linker_directory: PathBuf,
}

impl Toolchain {
    fn find() -> Result<Self, Error> {
        let rustc = variable("RUSTC")?;
        let output = Command::new(&rustc).args(["--print", "sysroot"]).output()?;
        let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let directory = directory()?;
        let library = [
            sysroot.join("lib/rustlib/src/rust/library"),
            directory.join(format!("rust-src/usr/src/rustc-{RUST_RELEASE}/library")),
        ]
        .into_iter()
        .find(|path| path.join("Cargo.lock").is_file());
        let linker_directory = directory.join("bin");
        match library {
            Some(library) if linker_directory.join("bpf-linker").is_file() => {
                Ok(Toolchain { rustc, sysroot, library, linker_directory })
            }
            _ => Err(format!(
                "the eBPF toolchain is not complete in `{}`: run `cargo xtask setup`",
                directory.display()
            )
            .into()),
        }
    }

    /// Builds the objects and gives their directory.
    fn build(&self, root: &Path, target: &Path) -> Result<PathBuf, Error> {
        let mut path = self.linker_directory.clone().into_os_string();
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let architecture = variable("CARGO_CFG_TARGET_ARCH")?;
        // No BTF: nothing here is relocated by it, and it would be the larger half of the object. Copies
        // of known size become words; the linker's default would make them calls that go byte by byte.
        let flags = format!(
            "--cfg=bpf_target_arch=\"{}\"\u{1f}-Clink-arg=--disable-expand-memcpy-in-order",
            architecture.display()
        );
        let mut command = Command::new(variable("CARGO")?);
        for name in OUTER_VARIABLES {
            command.env_remove(name);
        }
        command
            .current_dir(root)
            .args(["build", "--package", "clawgress-ebpf", "--bins", "--release"])
            .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core", "--target-dir"])
            .arg(target)
            .env("PATH", path)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("__CARGO_TESTS_ONLY_SRC_ROOT", &self.library)
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            // The linker makes one program of whole crates; pieces of an earlier build have no place in it.
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            // 3 lays out more, and makes nothing faster that was measured.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "2")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
        let status = command.status()?;
        if !status.success() {
            return Err(format!("building the kernel programs failed ({status}); see above").into());
        }
        Ok(target.join("bpfel-unknown-none/release"))
    }

    /// Removes what neither the loader nor the kernel reads.
    fn strip(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let host = env::var("HOST")?;
        let objcopy = self.sysroot.join("lib/rustlib").join(host).join("bin/rust-objcopy");
        let status = Command::new(&objcopy)
            .arg("--strip-debug")
            .arg(from)
            .arg(to)
            .env("LD_LIBRARY_PATH", self.sysroot.join("lib"))
            .status()
            .map_err(|error| format!("cannot run `{}`: {error}", objcopy.display()))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("`{}` failed ({status})", objcopy.display()).into())
        }
    }
}

/// `$CLAWGRESS_TOOLCHAIN_DIR`, else `clawgress/toolchain` in the user's cache directory.
fn directory() -> Result<PathBuf, Error> {
    if let Some(directory) = env::var_os("CLAWGRESS_TOOLCHAIN_DIR") {
        return Ok(PathBuf::from(directory));
    }
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(variable("HOME")?).join(".cache"),
    };
    Ok(cache.join("clawgress/toolchain"))
}
