//! What the command of a run is: the hash of its executable. A signal: between this look and the command's start
//! the file may be another, and what an interpreter then reads is not in it.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// SHA-256 of the file that `program` names, in hexadecimal digits; `None` if it can't be found or read.
pub fn hash(program: &OsStr) -> Option<String> {
    let path = find(program, env::var_os("PATH")?.as_os_str())?;
    hash_file(&path).ok()
}

/// As execvp(3) finds it: a name without a slash in the directories of the path.
fn find(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    if Path::new(program).components().count() > 1 || Path::new(program).is_absolute() {
        return Some(PathBuf::from(program));
    }
    let is_executable = |file: &PathBuf| {
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(path).map(|directory| directory.join(program)).find(is_executable)
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; READ_BYTES]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => context.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_it_would_be_run() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("a"), directory.path().join("b"));
        for place in [&first, &second] {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("tool"), "abc").unwrap();
        }
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(second.join("tool"), executable).unwrap();
        let path = env::join_paths([&first, &second]).unwrap();
        let found = find(OsStr::new("tool"), &path).unwrap();
        assert_eq!(found, second.join("tool"), "the first can't be run");
        assert_eq!(find(OsStr::new("./tool"), &path), Some(PathBuf::from("./tool")));
        assert_eq!(find(OsStr::new("none"), &path), None);
        // FIPS 180-2, appendix B.1.
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_file(&found).unwrap(), known);
    }
}
