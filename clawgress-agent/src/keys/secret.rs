//! Files of secrets: each created once, whole or not at all, and refused if anybody else could have read it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc::O_NOFOLLOW;
use nix::unistd::Uid;
use zeroize::Zeroizing;

/// Bytes of a secret: the output size of SHA-256, the most that strengthens the MAC (RFC 2104, section 3), and the seed
/// of an Ed25519 key (RFC 8032, section 5.1.5), and the private key of P-256.
pub const SECRET_BYTES: usize = 32;

/// A secret with one purpose.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    /// The file; a new format is a new name.
    file: &'static str,
    /// What it is of, in words.
    of: &'static str,
    /// What to do where it is lost.
    anew: &'static str,
}

/// What API keys are hashed under.
pub const API_KEYS: Purpose =
    Purpose { file: "api-key-hmac-v1", of: "API keys", anew: "create all API keys anew" };
/// What policy revisions are signed with.
pub const REVISIONS: Purpose = Purpose {
    file: "revision-ed25519-v1",
    of: "policy signatures",
    anew: "look the live policy over and apply it anew",
};
/// What certificates of hosts that are read are signed with.
pub const INTERCEPTION: Purpose = Purpose {
    file: "interception-p256-v1",
    of: "the authority by which TLS is read",
    anew: "the certificates beside it (`interception-ca-*`), and give clients the new authority",
};

/// What providers' keys are sealed with.
pub const PROVIDER_KEYS: Purpose = Purpose {
    file: "provider-keys-aes256-v1",
    of: "providers' keys",
    anew: "give all providers' keys anew (`clawgressctl provider-key`)",
};

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file system.
    #[error("cannot read or create the secret `{path}`: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others may have read or replaced it.
    #[error(
        "the secret `{path}` could be used by others (mode {mode:04o}, owner {owner}): if nobody has read it, `chmod 0600` and `chown` it to this role's user; else remove it and {anew}"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
        /// Owner.
        owner: u32,
        /// What is lost with it.
        anew: &'static str,
    },
    /// Not what this role wrote.
    #[error("the secret `{path}` is damaged: restore it from a backup, or remove it and {anew}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is lost with it.
        anew: &'static str,
    },
    /// No key.
    #[error("the key of {0} can't be made")]
    Make(&'static str),
    /// No randomness.
    #[error("the kernel gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Opens a secret in `directory`, creating both at first start.
///
/// # Errors
/// If it can't be read, created, or trusted.
pub fn open(directory: &Path, purpose: Purpose) -> Result<Zeroizing<[u8; SECRET_BYTES]>, SecretError> {
    open_made(directory, purpose, || {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        getrandom::fill(bytes.as_mut()).map_err(SecretError::Random)?;
        Ok(bytes)
    })
}

/// As [`open`], for a secret that not any bytes can be: `make` makes them.
///
/// # Errors
/// As [`open`], and those of `make`.
pub fn open_made(
    directory: &Path,
    purpose: Purpose,
    make: impl FnOnce() -> Result<Zeroizing<[u8; SECRET_BYTES]>, SecretError>,
) -> Result<Zeroizing<[u8; SECRET_BYTES]>, SecretError> {
    let path = directory.join(purpose.file);
    self::directory(directory)?;
    match read(&path, purpose) {
        Err(SecretError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = make()?;
            create(directory, purpose.file, bytes.as_ref())?;
            tracing::info!(path = %path.display(), "created the secret of {}; keep a backup of it", purpose.of);
            read(&path, purpose)
        }
        other => other,
    }
}

/// Creates the directory of secrets, if it is not there.
///
/// # Errors
/// If it can't be created.
pub fn directory(directory: &Path) -> Result<(), SecretError> {
    let io = |error| SecretError::Io { path: directory.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)
}

/// Whether there is a secret in `directory`, whole or not.
///
/// # Errors
/// If that can't be told.
pub fn is_there(directory: &Path, purpose: Purpose) -> Result<bool, SecretError> {
    let path = directory.join(purpose.file);
    match fs::symlink_metadata(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(SecretError::Io { path, error }),
    }
}

fn read(path: &Path, purpose: Purpose) -> Result<Zeroizing<[u8; SECRET_BYTES]>, SecretError> {
    let io = |error| SecretError::Io { path: path.to_owned(), error };
    let anew = purpose.anew;
    let damaged = || SecretError::Damaged { path: path.to_owned(), anew };
    let mut file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o077 != 0 || (owner != 0 && owner != Uid::effective().as_raw()) {
        return Err(SecretError::Exposed { path: path.to_owned(), mode, owner, anew });
    }
    if !metadata.is_file() || metadata.len() != SECRET_BYTES as u64 {
        return Err(damaged());
    }
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    file.read_exact(bytes.as_mut()).map_err(io)?;
    // A file of zeros is what a crash of the file system leaves behind, not a secret.
    if bytes.iter().all(|b| *b == 0) {
        return Err(damaged());
    }
    Ok(bytes)
}

/// Writes the file under another name, makes it durable, then links it into place: a reader finds a whole
/// file or none, and of two that start at once only one creates it. One that is there stays as it is.
///
/// # Errors
/// If it can't be created.
pub fn create(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), SecretError> {
    let path = directory.join(name);
    let io = |error| SecretError::Io { path: path.clone(), error };
    let new = directory.join(format!("{name}.{}.new", std::process::id()));
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
    let linked = fs::hard_link(&new, &path);
    fs::remove_file(&new).map_err(io)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
        _ => {}
    }
    File::open(directory).and_then(|d| d.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(directory: &Path) -> Result<Zeroizing<[u8; SECRET_BYTES]>, SecretError> {
        super::open(directory, API_KEYS)
    }

    #[test]
    fn the_secret_is_created_once_with_mode_0600() {
        let dir = tempfile::tempdir().expect("directory");
        let keys = dir.path().join("state/keys");
        let first = open(&keys).expect("created");
        assert_eq!(first, open(&keys).expect("read"), "the second start finds the same secret");
        let metadata = fs::metadata(keys.join(API_KEYS.file)).expect("metadata");
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(&keys).expect("metadata").mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(&keys).expect("list").count(), 1, "nothing is left of the creation");
        let other = tempfile::tempdir().expect("directory");
        assert_ne!(first, open(other.path()).expect("created"), "every node has its own");
        assert_ne!(first, super::open(&keys, REVISIONS).expect("created"), "and each purpose");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        open(dir.path()).expect("created");
        let path = dir.path().join(API_KEYS.file);
        for mode in [0o640, 0o604, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            assert!(matches!(open(dir.path()), Err(SecretError::Exposed { .. })), "{mode:o}");
        }
    }

    #[test]
    fn a_damaged_secret_is_never_replaced() {
        let dir = tempfile::tempdir().expect("directory");
        open(dir.path()).expect("created");
        let path = dir.path().join(API_KEYS.file);
        for content in [&b""[..], &[7; 31], &[7; 33], &[0; 32]] {
            fs::write(&path, content).expect("write");
            assert!(matches!(open(dir.path()), Err(SecretError::Damaged { .. })), "{}", content.len());
            assert_eq!(fs::read(&path).expect("read"), content);
        }
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&path, &elsewhere).expect("rename");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("link");
        assert!(open(dir.path()).is_err(), "a symbolic link is not followed");
    }
}
