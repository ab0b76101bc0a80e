//! The secret's file: created once, whole or not at all, and refused if anybody else could have read it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use nix::libc::O_NOFOLLOW;
use nix::unistd::Uid;
use zeroize::Zeroizing;

/// The file; a new format is a new name.
const FILE: &str = "api-key-hmac-v1";
/// Bytes of the secret: the output size of SHA-256, the most that strengthens the MAC (RFC 2104, section 3).
const SECRET_BYTES: usize = 32;

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
        "the secret `{path}` could be used by others (mode {mode:04o}, owner {owner}): if nobody has read it, `chmod 0600` and `chown` it to this role's user; else remove it and create all API keys anew"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
        /// Owner.
        owner: u32,
    },
    /// Not what this role wrote.
    #[error(
        "the secret `{path}` is damaged: restore it from a backup, or remove it and create all API keys anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// No randomness.
    #[error("the kernel gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Opens the secret in `directory`, creating both at first start.
///
/// # Errors
/// If it can't be read, created, or trusted.
pub fn open(directory: &Path) -> Result<hmac::Key, SecretError> {
    let path = directory.join(FILE);
    let io = |error| SecretError::Io { path: path.clone(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
    match read(&path) {
        Err(SecretError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            create(directory, &path)?;
            tracing::info!(path = %path.display(), "created the secret of API keys; keep a backup of it");
            read(&path)
        }
        other => other,
    }
}

fn read(path: &Path) -> Result<hmac::Key, SecretError> {
    let io = |error| SecretError::Io { path: path.to_owned(), error };
    let mut file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o077 != 0 || (owner != 0 && owner != Uid::effective().as_raw()) {
        return Err(SecretError::Exposed { path: path.to_owned(), mode, owner });
    }
    if !metadata.is_file() || metadata.len() != SECRET_BYTES as u64 {
        return Err(SecretError::Damaged { path: path.to_owned() });
    }
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    file.read_exact(bytes.as_mut()).map_err(io)?;
    // A file of zeros is what a crash of the file system leaves behind, not a secret.
    if bytes.iter().all(|b| *b == 0) {
        return Err(SecretError::Damaged { path: path.to_owned() });
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, bytes.as_ref()))
}

/// Writes the file under another name, makes it durable, then links it into place: a reader finds a whole
/// secret or none, and of two that start at once only one creates it.
fn create(directory: &Path, path: &Path) -> Result<(), SecretError> {
    let io = |error| SecretError::Io { path: path.to_owned(), error };
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(bytes.as_mut()).map_err(SecretError::Random)?;
    let new = directory.join(format!("{FILE}.{}.new", std::process::id()));
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(io)?;
    file.write_all(bytes.as_ref()).and_then(|()| file.sync_all()).map_err(io)?;
    let linked = fs::hard_link(&new, path);
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

    fn sign(key: &hmac::Key) -> Vec<u8> {
        hmac::sign(key, b"x").as_ref().to_vec()
    }

    #[test]
    fn the_secret_is_created_once_with_mode_0600() {
        let dir = tempfile::tempdir().expect("directory");
        let keys = dir.path().join("state/keys");
        let first = open(&keys).expect("created");
        assert_eq!(sign(&first), sign(&open(&keys).expect("read")), "the second start finds the same secret");
        let metadata = fs::metadata(keys.join(FILE)).expect("metadata");
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(&keys).expect("metadata").mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(&keys).expect("list").count(), 1, "nothing is left of the creation");
        let other = tempfile::tempdir().expect("directory");
        assert_ne!(sign(&first), sign(&open(other.path()).expect("created")), "every node has its own");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        open(dir.path()).expect("created");
        let path = dir.path().join(FILE);
        for mode in [0o640, 0o604, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            assert!(matches!(open(dir.path()), Err(SecretError::Exposed { .. })), "{mode:o}");
        }
    }

    #[test]
    fn a_damaged_secret_is_never_replaced() {
        let dir = tempfile::tempdir().expect("directory");
        open(dir.path()).expect("created");
        let path = dir.path().join(FILE);
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
