//! Pipes, shared by all tunnels: one is held only while bytes are in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::pipe::{PipeFlags, pipe_with};

/// Pipes at once. The kernel grants an unprivileged user 64 MiB of pipe buffers (1024 pipes) and then
/// only tiny ones (pipe(7), `pipe-user-pages-soft`); half of that leaves room. Beyond it, tunnels copy.
const LIVE_MAX: usize = 512;
/// Pipes kept for reuse: more directions than this seldom move at the same instant.
const IDLE_MAX: usize = 64;

/// The pool.
#[derive(Debug)]
pub struct Pipes {
    idle: Mutex<Vec<(OwnedFd, OwnedFd)>>,
    live: AtomicUsize,
    live_max: usize,
}

/// A pipe in use.
#[derive(Debug)]
pub struct Pipe {
    pool: Arc<Pipes>,
    /// Reader and writer; `None` only while dropping.
    ends: Option<(OwnedFd, OwnedFd)>,
    held: usize,
}

// === impl Pipes ===

impl Default for Pipes {
    fn default() -> Self {
        Pipes::with_max(LIVE_MAX)
    }
}

impl Pipes {
    /// A pool of at most `live_max` pipes.
    #[must_use]
    pub fn with_max(live_max: usize) -> Self {
        Pipes { idle: Mutex::default(), live: AtomicUsize::new(0), live_max }
    }

    /// An empty pipe; `None` if there are enough, or the system gives no more.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Pipe> {
        let pipe = |ends| Pipe { pool: Arc::clone(self), ends: Some(ends), held: 0 };
        if let Some(ends) = self.idle.lock().pop() {
            return Some(pipe(ends));
        }
        if self.live.fetch_add(1, Ordering::AcqRel) >= self.live_max {
            self.live.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        match pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC) {
            Ok(ends) => Some(pipe(ends)),
            Err(_) => {
                self.live.fetch_sub(1, Ordering::AcqRel);
                None
            }
        }
    }
}

// === impl Pipe ===

impl Pipe {
    /// Where bytes come out.
    pub fn reader(&self) -> BorrowedFd<'_> {
        self.end(|(reader, _)| reader)
    }

    /// Where bytes go in.
    pub fn writer(&self) -> BorrowedFd<'_> {
        self.end(|(_, writer)| writer)
    }

    #[expect(clippy::expect_used, reason = "the ends are only taken out in drop, after which nobody can ask")]
    fn end(&self, which: impl Fn(&(OwnedFd, OwnedFd)) -> &OwnedFd) -> BorrowedFd<'_> {
        which(self.ends.as_ref().expect("ends")).as_fd()
    }

    /// Bytes inside.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Notes that `n` bytes went in.
    pub fn holds(&mut self, n: usize) {
        self.held += n;
    }

    /// Notes that `n` bytes came out.
    pub fn gave(&mut self, n: usize) {
        self.held = self.held.saturating_sub(n);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        // INVARIANT: another tunnel must never get bytes of this one.
        if self.held == 0 {
            let mut idle = self.pool.idle.lock();
            if idle.len() < IDLE_MAX {
                idle.push(ends);
                return;
            }
        }
        drop(ends);
        self.pool.live.fetch_sub(1, Ordering::AcqRel);
    }
}
