//! What an operator's file says in place of what comes with the program, read again when the file changes.
//!
//! INVARIANT: what can't be used changes nothing: what was in force stays, and the log tells why, with the place and what to do.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use tokio::time::MissedTickBehavior;

use crate::limit;

/// Makes it of the file's text; of none, where no file is named.
type Make<T> = fn(Option<&str>) -> Result<T>;

/// What is in force.
#[derive(Debug)]
pub struct Followed<T> {
    /// What it is, for messages: `prices`; and the setting that names the file.
    what: &'static str,
    setting: &'static str,
    file: Option<PathBuf>,
    make: Make<T>,
    live: ArcSwap<Live<T>>,
}

#[derive(Debug)]
struct Live<T> {
    seen: Option<Seen>,
    value: Arc<T>,
}

/// A file as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

// === impl Followed ===

impl<T: Send + Sync + 'static> Followed<T> {
    /// What `file` says, or comes with the program where there is none.
    ///
    /// # Errors
    /// If the file can't be read or used.
    pub fn new(
        what: &'static str,
        setting: &'static str,
        file: Option<&Path>,
        make: Make<T>,
    ) -> Result<Followed<T>> {
        let live = Live::read(what, setting, file, make)?;
        Ok(Followed {
            what,
            setting,
            file: file.map(Path::to_owned),
            make,
            live: ArcSwap::from_pointee(live),
        })
    }

    /// What is in force now.
    #[must_use]
    pub fn now(&self) -> Arc<T> {
        Arc::clone(&self.live.load().value)
    }

    /// Reads the file again whenever it changes, for ever. It is looked at, read and made use of on threads that may block:
    /// nobody who is served waits for that.
    pub async fn follow(&self) {
        let Some(file) = &self.file else { return };
        let mut looks = tokio::time::interval(limit::TLS_FILES_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refused = None;
        loop {
            looks.tick().await;
            let known = self.live.load().seen;
            let (what, setting, make, path) = (self.what, self.setting, self.make, file.clone());
            let look = tokio::task::spawn_blocking(move || {
                let seen = Seen::of(&path);
                let is_news = seen != known && refused != Some(seen);
                is_news.then(|| (seen, Live::read(what, setting, Some(&path), make)))
            });
            let (seen, read) = match look.await {
                Ok(Some(looked)) => looked,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!("the {what} can't be looked at: {error}");
                    continue;
                }
            };
            match read {
                Ok(live) => {
                    refused = None;
                    self.live.store(Arc::new(live));
                    tracing::info!(file = %file.display(), "the {} were read again", self.what);
                }
                Err(error) => {
                    // One that is half replaced changes once more.
                    refused = Some(seen);
                    tracing::error!("the new {} can't be used, the former stay: {error:#}", self.what);
                }
            }
        }
    }
}

// === impl Live ===

impl<T> Live<T> {
    fn read(what: &str, setting: &str, file: Option<&Path>, make: Make<T>) -> Result<Live<T>> {
        let Some(file) = file else { return Ok(Live { seen: None, value: Arc::new(make(None)?) }) };
        // Before it is read: what changes meanwhile is read once more.
        let seen = Seen::of(file);
        let shown = file.display();
        let text = text(file).with_context(|| {
            format!("{what} `{shown}` can't be read: put the file there, or take `{setting}` out of [llm]")
        })?;
        let value = make(Some(&text)).with_context(|| format!("{what} `{shown}` can't be used"))?;
        Ok(Live { seen, value: Arc::new(value) })
    }
}

fn text(file: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(file)?.take(limit::OPERATOR_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit::OPERATOR_FILE_BYTES {
        bail!("it has more than {} bytes", limit::OPERATOR_FILE_BYTES);
    }
    Ok(text)
}

// === impl Seen ===

impl Seen {
    fn of(file: &Path) -> Option<Seen> {
        let meta = std::fs::metadata(file).ok()?;
        Some(Seen {
            inode: meta.ino(),
            bytes: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;

    fn number(text: Option<&str>) -> Result<u32> {
        text.map_or(Ok(7), |text| text.trim().parse().context("line 1: no number; write one"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_counts_as_soon_as_it_is_sound_and_no_sooner() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("numbers");
        assert_eq!(*Followed::new("numbers", "numbers", None, number).expect("none named").now(), 7);
        let refused = Followed::new("numbers", "numbers", Some(&file), number).expect_err("none there");
        assert!(format!("{refused:#}").contains("take `numbers` out of [llm]"), "{refused:#}");
        std::fs::write(&file, "x").expect("written");
        let refused = Followed::new("numbers", "numbers", Some(&file), number).expect_err("no number");
        assert!(format!("{refused:#}").contains("line 1: no number; write one"), "{refused:#}");
        std::fs::write(&file, "1").expect("written");
        let followed = Arc::new(Followed::new("numbers", "numbers", Some(&file), number).expect("sound"));
        let following = tokio::spawn({
            let followed = Arc::clone(&followed);
            async move { followed.follow().await }
        });
        // A clock that stands still but for timers: each step is one look.
        for (written, want) in [(Some("22"), 22), (Some("x"), 22), (None, 22), (Some("333"), 333)] {
            match written {
                Some(text) => std::fs::write(&file, text).expect("written"),
                None => std::fs::remove_file(&file).expect("gone"),
            }
            tokio::time::sleep(limit::TLS_FILES_LOOK + Duration::from_millis(1)).await;
            assert_eq!(*followed.now(), want, "{written:?}");
        }
        following.abort();
    }

    /// Threads that made something of a file.
    static MADE_ON: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());

    fn noted(text: Option<&str>) -> Result<u32> {
        MADE_ON.lock().push(std::thread::current().id());
        number(text)
    }

    #[tokio::test(start_paused = true)]
    async fn who_serves_makes_nothing_of_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("numbers");
        std::fs::write(&file, "1").expect("written");
        let followed = Arc::new(Followed::new("numbers", "numbers", Some(&file), noted).expect("sound"));
        MADE_ON.lock().clear();
        let following = tokio::spawn({
            let followed = Arc::clone(&followed);
            async move { followed.follow().await }
        });
        std::fs::write(&file, "22").expect("written");
        tokio::time::sleep(limit::TLS_FILES_LOOK + Duration::from_millis(1)).await;
        assert_eq!(*followed.now(), 22);
        let own = std::thread::current().id();
        assert!(!MADE_ON.lock().is_empty() && MADE_ON.lock().iter().all(|thread| *thread != own));
        following.abort();
    }
}
