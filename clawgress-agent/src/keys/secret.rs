//! Files of secrets: each created once, whole or not at all, and refused if anybody else could have read it. What is in them is
//! sealed ([`super::secrets`]).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::libc::O_NOFOLLOW;
use nix::unistd::Uid;
use zeroize::Zeroizing;

/// Bytes of a secret: the output size of SHA-256, the most that strengthens the MAC (RFC 2104, section 3), and the seed
/// of an Ed25519 key (RFC 8032, section 5.1.5), and the private key of P-256.
pub const SECRET_BYTES: usize = 32;

/// A secret.
pub type Secret = Zeroizing<[u8; SECRET_BYTES]>;

/// A secret with one purpose.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    /// What it is called, and the file that had it before secrets were sealed; a new format is a new name.
    pub file: &'static str,
    /// What it is of, in words.
    pub of: &'static str,
    /// What to do where it is lost.
    pub anew: &'static str,
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

// === impl Purpose ===

impl Purpose {
    /// Every one.
    pub const ALL: [Purpose; 4] = [API_KEYS, REVISIONS, INTERCEPTION, PROVIDER_KEYS];

    /// The file.
    pub fn sealed(self) -> String {
        format!("{}.sealed", self.file)
    }
}

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
    /// Sealed under something else.
    #[error(
        "the secret `{path}` is damaged, or sealed under another master or for something else: restore it and its master from one backup, or remove it and {anew}"
    )]
    OtherMaster {
        /// The file.
        path: PathBuf,
        /// What is lost with it.
        anew: &'static str,
    },
    /// Unsealed beside one that is sealed, and another.
    #[error(
        "the secret `{path}` is not the one in the sealed file beside it: an earlier version ran here in between, and made it; move away the one that does not count, and {anew} if that is the sealed one"
    )]
    Two {
        /// The unsealed file.
        path: PathBuf,
        /// What is lost with the other.
        anew: &'static str,
    },
    /// What it was sealed under is not there.
    #[error(
        "there is nothing to open the secret `{path}` with: give this service systemd's credential `clawgress-keys-master` again (`LoadCredentialEncrypted=`), or restore `master-v1` beside it from a backup"
    )]
    NoMaster {
        /// The file.
        path: PathBuf,
    },
    /// No master.
    #[error("the credential `{path}` is no master of secrets: it has 32 to 4096 random bytes")]
    Credential {
        /// The file.
        path: PathBuf,
    },
    /// No key.
    #[error("the key of {0} can't be made")]
    Make(&'static str),
    /// No randomness.
    #[error("the kernel gives no random bytes: {0}")]
    Random(getrandom::Error),
}

// === impl SecretError ===

impl SecretError {
    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, SecretError::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// A new one.
///
/// # Errors
/// If the kernel gives no random bytes.
pub fn random() -> Result<Secret, SecretError> {
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(bytes.as_mut()).map_err(SecretError::Random)?;
    Ok(bytes)
}

/// Creates the directory of secrets, if it is not there.
///
/// # Errors
/// If it can't be created.
pub fn directory(directory: &Path) -> Result<(), SecretError> {
    let io = |error| SecretError::Io { path: directory.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)
}

/// Whether there is such a file, whole or not.
///
/// # Errors
/// If that can't be told.
pub fn is_there(path: &Path) -> Result<bool, SecretError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(SecretError::Io { path: path.to_owned(), error }),
    }
}

/// What a file holds, which has so many bytes at least and at most; `anew` says what to do where it is lost.
///
/// # Errors
/// If it can't be read, is something else, or could be used by others.
pub fn read(
    path: &Path,
    (least, most): (usize, usize),
    anew: &'static str,
) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let io = |error| SecretError::Io { path: path.to_owned(), error };
    let damaged = || SecretError::Damaged { path: path.to_owned(), anew };
    let mut file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o077 != 0 || (owner != 0 && owner != Uid::effective().as_raw()) {
        return Err(SecretError::Exposed { path: path.to_owned(), mode, owner, anew });
    }
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if !metadata.is_file() || !(least..=most).contains(&length) {
        return Err(damaged());
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
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
    let (path, new) = (directory.join(name), written(directory, name, bytes)?);
    let io = |error| SecretError::Io { path: path.clone(), error };
    let linked = fs::hard_link(&new, &path);
    fs::remove_file(&new).map_err(io)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
        _ => {}
    }
    durable(directory).map_err(io)
}

/// Puts a whole file in the place of one.
///
/// # Errors
/// If it can't be written.
pub fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), SecretError> {
    let (path, new) = (directory.join(name), written(directory, name, bytes)?);
    let replaced = fs::rename(&new, &path).and_then(|()| durable(directory));
    replaced.map_err(|error| SecretError::Io { path, error })
}

/// What is held while secrets are opened and made: of two that start at once, one waits.
///
/// # Errors
/// If the directory can't be locked.
pub fn locked(directory: &Path) -> Result<Flock<File>, SecretError> {
    let io = |error| SecretError::Io { path: directory.to_owned(), error };
    let file = File::open(directory).map_err(io)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| io(error.into()))
}

/// Takes away what a start left that was ended while it made or replaced one of these: it may hold a secret. To be called with the
/// directory [`locked`].
///
/// # Errors
/// If it can't be.
pub fn sweep(directory: &Path, names: &[String]) -> Result<(), SecretError> {
    let io = |error| SecretError::Io { path: directory.to_owned(), error };
    for entry in fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let Some(left) = name.to_str().and_then(|name| name.strip_suffix(".new")) else { continue };
        if left.rsplit_once('.').is_some_and(|(of, _)| names.iter().any(|name| name == of)) {
            remove(directory, &format!("{left}.new"))?;
        }
    }
    Ok(())
}

/// Takes a file away.
///
/// # Errors
/// If it can't be.
pub fn remove(directory: &Path, name: &str) -> Result<(), SecretError> {
    let path = directory.join(name);
    let removed = fs::remove_file(&path).and_then(|()| durable(directory));
    removed.map_err(|error| SecretError::Io { path, error })
}

/// A durable file beside the one it is to become.
fn written(directory: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, SecretError> {
    let new = directory.join(format!("{name}.{}.new", std::process::id()));
    let io = |error| SecretError::Io { path: directory.join(name), error };
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
    Ok(new)
}

/// Makes durable what stands in a directory.
fn durable(directory: &Path) -> io::Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(directory: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        read(&directory.join(API_KEYS.file), (SECRET_BYTES, SECRET_BYTES), API_KEYS.anew)
    }

    fn made(directory: &Path) {
        create(directory, API_KEYS.file, random().expect("random").as_ref()).expect("created");
    }

    #[test]
    fn the_secret_is_created_once_with_mode_0600() {
        let dir = tempfile::tempdir().expect("directory");
        let keys = dir.path().join("state/keys");
        directory(&keys).expect("directory");
        assert!(open(&keys).expect_err("nothing is there").is_not_found());
        made(&keys);
        let first = open(&keys).expect("read");
        made(&keys);
        assert_eq!(first, open(&keys).expect("read"), "one that is there stays");
        let metadata = fs::metadata(keys.join(API_KEYS.file)).expect("metadata");
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(&keys).expect("metadata").mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(&keys).expect("list").count(), 1, "nothing is left of the creation");
        replace(&keys, API_KEYS.file, &[1; SECRET_BYTES]).expect("replaced");
        assert_eq!(open(&keys).expect("read").as_slice(), [1; SECRET_BYTES]);
        let metadata = fs::metadata(keys.join(API_KEYS.file)).expect("metadata");
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        remove(&keys, API_KEYS.file).expect("removed");
        assert_eq!(fs::read_dir(&keys).expect("list").count(), 0);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        made(dir.path());
        let path = dir.path().join(API_KEYS.file);
        for mode in [0o640, 0o604, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            assert!(matches!(open(dir.path()), Err(SecretError::Exposed { .. })), "{mode:o}");
        }
    }

    #[test]
    fn a_damaged_secret_is_never_replaced() {
        let dir = tempfile::tempdir().expect("directory");
        made(dir.path());
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
