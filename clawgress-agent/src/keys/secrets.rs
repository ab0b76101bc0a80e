//! The secrets of this node at rest: each sealed under one master, which systemd gives as a credential, or which is a file that this
//! role alone may read. Must never write a secret unsealed, nor make a master anew where something is sealed under another.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

use super::secret::{self, Purpose, SECRET_BYTES, Secret, SecretError};

/// What systemd calls the master (systemd.exec(5), `LoadCredentialEncrypted=`).
pub const CREDENTIAL: &str = "clawgress-keys-master";
/// The master's file, where there is no credential; a new format is a new name.
const MASTER: &str = "master-v1";
/// Most bytes of a master.
const MASTER_BYTES_MAX: usize = 4096;
/// What tells this use of a master from any other (RFC 5869 section 3.2).
const USE: &[u8] = b"clawgress keys at rest v1";
/// Bytes of a sealed secret: a nonce, the secret, and the tag of AES-GCM.
const SEALED_BYTES: usize = NONCE_LEN + SECRET_BYTES + 16;

/// All secrets in a directory.
#[derive(Debug)]
pub struct Secrets {
    directory: PathBuf,
    master: RandomizedNonceKey,
}

/// Length of the key that is derived from a master, for HKDF.
struct KeyBytes;

// === impl Secrets ===

impl Secrets {
    /// Those in `directory`, under the master in `credentials`, systemd's directory of credentials, where that has one. Whatever
    /// is there unsealed, or under the master's file while there is a credential, is sealed under the master that counts now.
    ///
    /// # Errors
    /// If a master can't be read, created or trusted, or one of the secrets is sealed under none that is there.
    pub fn open(directory: PathBuf, credentials: Option<&Path>) -> Result<Secrets, SecretError> {
        secret::directory(&directory)?;
        let _lock = secret::locked(&directory)?;
        secret::sweep(&directory, &names())?;
        let given = credentials.map(credential).transpose()?.flatten();
        let file = directory.join(MASTER);
        let read = || secret::read(&file, (SECRET_BYTES, MASTER_BYTES_MAX), "restore it from a backup");
        let of_file = match read() {
            Ok(bytes) => Some(bytes),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let (master, former) = match (given, of_file) {
            (Some(given), former) => (given, former),
            (None, Some(of_file)) => (of_file, None),
            (None, None) => {
                for path in Purpose::ALL.map(|purpose| directory.join(purpose.sealed())) {
                    if secret::is_there(&path)? {
                        return Err(SecretError::NoMaster { path });
                    }
                }
                let made = secret::random()?;
                secret::create(&directory, MASTER, made.as_ref())?;
                tracing::info!(path = %file.display(), "created the master under which secrets are sealed; keep a backup of it");
                (read()?, None)
            }
        };
        let secrets = Secrets { master: key(&master)?, directory };
        let of_former = former.as_deref().map(|former| key(former)).transpose()?;
        secrets.check(of_former.as_ref())?;
        secrets.take_over(of_former.as_ref())?;
        if former.is_some() {
            secret::remove(&secrets.directory, MASTER)?;
            tracing::info!("secrets are sealed under systemd's credential `{CREDENTIAL}` alone from now on");
        }
        Ok(secrets)
    }

    /// Where they are, and what goes with them.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens a secret, creating it at first start.
    ///
    /// # Errors
    /// If it can't be read, created, or trusted.
    pub fn secret(&self, purpose: Purpose) -> Result<Secret, SecretError> {
        self.made(purpose, secret::random)
    }

    /// As [`Secrets::secret`], for a secret that not any bytes can be: `make` makes them.
    ///
    /// # Errors
    /// As [`Secrets::secret`], and those of `make`.
    pub fn made(
        &self,
        purpose: Purpose,
        make: impl FnOnce() -> Result<Secret, SecretError>,
    ) -> Result<Secret, SecretError> {
        match self.unsealed(purpose, &self.master) {
            Err(error) if error.is_not_found() => {
                let _lock = secret::locked(&self.directory)?;
                let sealed = self.sealed(purpose, make()?.as_ref())?;
                secret::create(&self.directory, &purpose.sealed(), &sealed)?;
                let path = self.directory.join(purpose.sealed());
                tracing::info!(path = %path.display(), "created the secret of {}; keep a backup of it", purpose.of);
                self.unsealed(purpose, &self.master)
            }
            other => other,
        }
    }

    /// Whether there is a secret, whole or not.
    ///
    /// # Errors
    /// If that can't be told.
    pub fn has(&self, purpose: Purpose) -> Result<bool, SecretError> {
        secret::is_there(&self.directory.join(purpose.sealed()))
    }

    /// Whether each that is sealed opens, before anything is written: nothing is sealed, or made, under a master that is not theirs.
    fn check(&self, former: Option<&RandomizedNonceKey>) -> Result<(), SecretError> {
        for purpose in Purpose::ALL {
            if self.has(purpose)? {
                let opened = self.unsealed(purpose, &self.master);
                opened.or_else(|error| former.map_or(Err(error), |former| self.unsealed(purpose, former)))?;
            }
        }
        Ok(())
    }

    /// Seals anew what is unsealed, or under the `former` master. Each is whole under one or the other whatever ends this.
    fn take_over(&self, former: Option<&RandomizedNonceKey>) -> Result<(), SecretError> {
        for purpose in Purpose::ALL {
            let former = former.filter(|_| self.has(purpose).unwrap_or(true));
            if let Some(former) = former
                && self.unsealed(purpose, &self.master).is_err()
            {
                let bytes = self.unsealed(purpose, former)?;
                let sealed = self.sealed(purpose, bytes.as_ref())?;
                secret::replace(&self.directory, &purpose.sealed(), &sealed)?;
            }
            let plain = self.directory.join(purpose.file);
            if secret::is_there(&plain)? {
                let bytes = secret::read(&plain, (SECRET_BYTES, SECRET_BYTES), purpose.anew)?;
                secret::create(&self.directory, &purpose.sealed(), &self.sealed(purpose, &bytes)?)?;
                // Only what opens as the same takes its place.
                if self.unsealed(purpose, &self.master)?.as_slice() != bytes.as_slice() {
                    return Err(SecretError::Two { path: plain, anew: purpose.anew });
                }
                secret::remove(&self.directory, purpose.file)?;
                tracing::info!(path = %plain.display(), "the secret of {} is sealed now", purpose.of);
            }
        }
        Ok(())
    }

    fn sealed(&self, purpose: Purpose, value: &[u8]) -> Result<Vec<u8>, SecretError> {
        let mut sealed = Zeroizing::new(Vec::with_capacity(SEALED_BYTES));
        sealed.extend_from_slice(value);
        let nonce = self.master.seal_in_place_append_tag(aad(purpose), &mut *sealed);
        let nonce = nonce.map_err(|_| SecretError::Make(purpose.of))?;
        Ok([&nonce.as_ref()[..], &sealed].concat())
    }

    fn unsealed(&self, purpose: Purpose, master: &RandomizedNonceKey) -> Result<Secret, SecretError> {
        let path = self.directory.join(purpose.sealed());
        let sealed = secret::read(&path, (SEALED_BYTES, SEALED_BYTES), purpose.anew)?;
        let other = || SecretError::OtherMaster { path: path.clone(), anew: purpose.anew };
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or_else(other)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| other())?;
        let mut opened = Zeroizing::new(sealed.to_vec());
        let value = master.open_in_place(nonce, aad(purpose), &mut opened).map_err(|_| other())?;
        let mut bytes = Secret::new([0; SECRET_BYTES]);
        if value.len() != bytes.len() {
            return Err(other());
        }
        bytes.copy_from_slice(value);
        Ok(bytes)
    }
}

// === impl KeyBytes ===

impl KeyType for KeyBytes {
    fn len(&self) -> usize {
        SECRET_BYTES
    }
}

/// Names of the files that hold a secret, sealed or not.
fn names() -> Vec<String> {
    let of = |purpose: Purpose| [purpose.file.to_owned(), purpose.sealed()];
    Purpose::ALL.into_iter().flat_map(of).chain([MASTER.to_owned()]).collect()
}

/// A secret opens as what it was sealed for alone.
fn aad(purpose: Purpose) -> Aad<&'static [u8]> {
    Aad::from(purpose.file.as_bytes())
}

/// The key that a master gives (RFC 5869).
fn key(master: &[u8]) -> Result<RandomizedNonceKey, SecretError> {
    let failed = || SecretError::Make("the master of all secrets");
    let mut bytes = Secret::new([0; SECRET_BYTES]);
    let extracted = Salt::new(HKDF_SHA256, &[]).extract(master);
    let expanded = extracted.expand(&[USE], KeyBytes).map_err(|_| failed())?;
    expanded.fill(bytes.as_mut()).map_err(|_| failed())?;
    RandomizedNonceKey::new(&AES_256_GCM, bytes.as_ref()).map_err(|_| failed())
}

/// The master among systemd's credentials, which are for this service alone to read, if there is one.
fn credential(credentials: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, SecretError> {
    let path = credentials.join(CREDENTIAL);
    let io = |error| SecretError::Io { path: path.clone(), error };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    // Whole at once: a buffer that grows would leave parts of it behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MASTER_BYTES_MAX + 1));
    file.take(MASTER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() < SECRET_BYTES || bytes.len() > MASTER_BYTES_MAX || bytes.iter().all(|b| *b == 0) {
        return Err(SecretError::Credential { path: path.clone() });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::secret::{API_KEYS, INTERCEPTION, REVISIONS};
    use super::*;

    fn opened(directory: &Path, credentials: Option<&Path>) -> Result<Secrets, SecretError> {
        Secrets::open(directory.to_owned(), credentials)
    }

    fn of(directory: &Path, credentials: Option<&Path>) -> [Vec<u8>; 2] {
        let secrets = opened(directory, credentials).expect("opened");
        [API_KEYS, REVISIONS].map(|purpose| secrets.secret(purpose).expect("there").to_vec())
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("directory").map(|entry| entry.expect("entry"));
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().expect("name")).collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_at_rest_but_sealed_and_each_opens_as_itself() {
        let dir = tempfile::tempdir().expect("directory");
        let first = of(dir.path(), None);
        assert_eq!(first, of(dir.path(), None), "the second start finds the same");
        assert_ne!(first[0], first[1]);
        let sealed = [API_KEYS, REVISIONS].map(|purpose| purpose.sealed());
        assert_eq!(names(dir.path()), [sealed[0].as_str(), MASTER, sealed[1].as_str()]);
        for (value, name) in first.iter().zip(&sealed) {
            let at_rest = fs::read(dir.path().join(name)).expect("file");
            assert!(!at_rest.windows(8).any(|part| value.windows(8).any(|own| own == part)), "{name}");
        }
        fs::copy(dir.path().join(&sealed[0]), dir.path().join(&sealed[1])).expect("copied");
        let swapped = opened(dir.path(), None).expect_err("it is another's");
        assert!(matches!(swapped, SecretError::OtherMaster { .. }), "{swapped}");
        let other = tempfile::tempdir().expect("directory");
        assert_ne!(first, of(other.path(), None), "every node has its own");
    }

    #[test]
    fn what_lay_unsealed_is_sealed_and_stays_what_it_was() {
        let dir = tempfile::tempdir().expect("directory");
        secret::create(dir.path(), API_KEYS.file, &[7; SECRET_BYTES]).expect("written");
        assert_eq!(of(dir.path(), None)[0], [7; SECRET_BYTES]);
        assert!(!dir.path().join(API_KEYS.file).exists());
        // A start that was ended between the two leaves both: what is sealed counts.
        secret::create(dir.path(), API_KEYS.file, &[7; SECRET_BYTES]).expect("written");
        assert_eq!(of(dir.path(), None)[0], [7; SECRET_BYTES]);
        assert!(!dir.path().join(API_KEYS.file).exists());
        // One that an earlier version made in between is another's: nobody guesses which counts.
        secret::create(dir.path(), API_KEYS.file, &[8; SECRET_BYTES]).expect("written");
        let refused = opened(dir.path(), None).expect_err("two of them");
        assert!(matches!(refused, SecretError::Two { .. }), "{refused}");
        assert!(dir.path().join(API_KEYS.file).exists());
    }

    #[test]
    fn what_a_start_left_that_was_ended_is_swept() {
        let dir = tempfile::tempdir().expect("directory");
        let before = of(dir.path(), None);
        let left = [
            format!("{MASTER}.17.new"),
            format!("{}.18.new", API_KEYS.sealed()),
            format!("{}.19.new", API_KEYS.file),
        ];
        for name in left.iter().chain([&"interception-ca-v1-00.pem.20.new".to_owned()]) {
            fs::write(dir.path().join(name), [7; SECRET_BYTES]).expect("written");
        }
        assert_eq!(of(dir.path(), None), before);
        let names = names(dir.path());
        assert!(left.iter().all(|name| !names.contains(name)), "{names:?}");
        assert!(names.contains(&"interception-ca-v1-00.pem.20.new".to_owned()), "that holds none");
    }

    /// Whoever comes second finds what the first made.
    #[test]
    fn two_that_start_at_once_have_the_same_secrets() {
        let dir = tempfile::tempdir().expect("directory");
        let start = std::sync::Barrier::new(4);
        let all: Vec<_> = std::thread::scope(|scope| {
            let one = || {
                start.wait();
                of(dir.path(), None)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().expect("joined")).collect()
        });
        assert!(all.iter().all(|secrets| *secrets == all[0]));
    }

    #[test]
    fn a_credential_takes_over_and_is_asked_for_from_then_on() {
        let (dir, credentials) =
            (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        let before = of(dir.path(), Some(credentials.path()));
        assert!(dir.path().join(MASTER).exists(), "there is no credential yet");
        let path = credentials.path().join(CREDENTIAL);
        for wrong in [&[1; 31][..], &[0; 32], &[1; MASTER_BYTES_MAX + 1]] {
            fs::write(&path, wrong).expect("written");
            let refused = opened(dir.path(), Some(credentials.path())).expect_err("no master");
            assert!(matches!(refused, SecretError::Credential { .. }), "{refused}");
        }
        fs::write(&path, [9; 48]).expect("written");
        assert_eq!(of(dir.path(), Some(credentials.path())), before, "sealed anew, and the same");
        assert!(!dir.path().join(MASTER).exists(), "the file opens nothing any more");
        assert_eq!(of(dir.path(), Some(credentials.path())), before);
        // To another: with the former as a file beside it.
        secret::create(dir.path(), MASTER, &[9; 48]).expect("written");
        fs::write(&path, [6; 32]).expect("written");
        assert_eq!(of(dir.path(), Some(credentials.path())), before);
        assert!(!dir.path().join(MASTER).exists());
        // Without it nothing opens, and nothing is made in its place.
        let refused = opened(dir.path(), None).expect_err("no credential");
        assert!(matches!(refused, SecretError::NoMaster { .. }), "{refused}");
        assert!(!dir.path().join(MASTER).exists());
        fs::write(&path, [8; 48]).expect("written");
        secret::create(dir.path(), INTERCEPTION.file, &[7; SECRET_BYTES]).expect("written");
        let refused = opened(dir.path(), Some(credentials.path())).expect_err("another master");
        assert!(matches!(refused, SecretError::OtherMaster { .. }), "{refused}");
        assert!(dir.path().join(INTERCEPTION.file).exists(), "nothing is sealed under it");
    }

    #[test]
    fn what_was_ended_on_the_way_to_a_credential_goes_on() {
        let (dir, credentials) =
            (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        let before = of(dir.path(), None);
        let master = fs::read(dir.path().join(MASTER)).expect("file");
        let revisions = fs::read(dir.path().join(REVISIONS.sealed())).expect("file");
        fs::write(credentials.path().join(CREDENTIAL), [9; 32]).expect("written");
        assert_eq!(of(dir.path(), Some(credentials.path())), before);
        // As if it had ended after the first of them.
        fs::write(dir.path().join(REVISIONS.sealed()), revisions).expect("written");
        secret::create(dir.path(), MASTER, &master).expect("written");
        assert_eq!(of(dir.path(), Some(credentials.path())), before);
        assert!(!dir.path().join(MASTER).exists());
    }
}
